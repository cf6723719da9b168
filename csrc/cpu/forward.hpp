// The forward recurrence of any cell, all T steps in one call.
//
// A work item is one head and up to b_per_core rows of the batch; it runs the whole sequence, on
// one thread or, its panels shared out among cores_d of them, on several that meet each step. In
// each step, for each panel of units, the products of all gates accumulate on top of Wx + bias: a
// stretch of terms for every register tile of rows, while the next stretch of R is fetched, so that
// all rows find R in the first cache. Then the cell's pointwise part is applied, and only states
// are kept (and, in training, what the backward pass asked for). R is packed once per call; its
// panels are walked back and forth, so that the end of one step is still in cache at the beginning
// of the next.
//
// A single step of a few rows, as in streaming, packs nothing and reads the weights where they lie.
#pragma once

#include "cpu/direct.hpp"
#include "cpu/order.hpp"
#include "cpu/panels.hpp"
#include "cpu/pointwise.hpp"

namespace flashrnn {

// Mirrored by flashrnn/runtime/launch.py: every field takes 8 bytes. Strides count numbers; the
// last dimension of every tensor is contiguous.
template <class Real>
struct ForwardArguments {
  const Real* wx;  // [B, T, G_w, N, D]
  int64_t wx_b, wx_t, wx_g, wx_n;
  const Real* r;        // [G_r, N, D, P] contiguous
  const Real* bias;     // [G, N, D] contiguous, or null
  const Real* weights;  // [K, N, D] contiguous, or null: per-unit parameters
  const Real* initial;  // [S, B, 1, N, D] contiguous, or null for zeros
  Real* states;         // [states_kept, B, T, N, D]
  int64_t states_s, states_b, states_t, states_n, states_kept;
  Real* last;   // [S, B, 1, N, D] contiguous
  Real* saved;  // [T, B, N, vectors of D, saved, lanes], or null in inference
  Real* workspace;
  int64_t B, T, N, D, b_per_core, cores_d, threads;
  int64_t packed;  // weights_lie, weights_packed or weights_to_pack
  ParallelRegion region;
  TeamSize team_size;
  Order order;
  int64_t ordered;  // wx holds the steps as they come, from order.start on
};

// What the workspace holds: no weights; those of an earlier call; none, but more calls follow.
constexpr int64_t weights_lie = 0, weights_packed = 1, weights_to_pack = 2;

template <class Cell, class S, int b_per_register, int d_per_register>
struct Forward {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  using Arguments = ForwardArguments<Real>;
  static constexpr int W = S::lanes, V = d_per_register / W, G = Cell::gates;
  static constexpr int Gr = Cell::recurrent, states = Cell::states;
  static_assert(d_per_register % W == 0 && V >= 1, "a panel is whole vectors");

  const Arguments& a;
  static constexpr int sums = Gr > 0 ? Gr : 1;  // accumulators per unit
  static constexpr int64_t depth = stretch<S>;
  // One row alone has too few vectors in a panel for a pointwise part that takes several together,
  // so its sums wait until those of all panels are complete.
  static constexpr bool alone = b_per_register == 1;

  // Where a row of the batch stands in this step: its Wx, its outputs, what it saves.
  struct Place {
    const Real* wx;
    Real *states, *saved;
  };

  int64_t panels, width, row;  // width: padded D; row: distance of two rows in scratch
  Real *packed, *bias, *weights, *scratch;
  int64_t states_size, sums_size, member_size, scratch_size;

  explicit Forward(const Arguments& arguments, Real* workspace, int64_t* needed = nullptr)
      : a(arguments) {
    panels = (a.D + d_per_register - 1) / d_per_register;
    width = panels * d_per_register;
    row = width + line<Real>;  // rows a power of two apart would share cache sets
    Workspace<Real> space{workspace};
    packed = space.take(a.N * panels * a.D * Gr * d_per_register);
    bias = space.take(a.N * G * width);
    weights = space.take(a.N * Cell::weights * width);
    states_size = round_up((states + 1) * a.b_per_core * row, line<Real>);
    sums_size = round_up((alone ? panels : 1) * a.b_per_core * sums * d_per_register, line<Real>);
    member_size = sums_size + round_up(a.b_per_core * int64_t{sizeof(Place) / sizeof(Real)}, line<Real>);
    scratch_size = states_size + a.cores_d * member_size;
    scratch = space.take(a.threads * scratch_size);
    if (needed != nullptr) *needed = space.used;
  }

  bool direct() const { return a.packed == weights_lie && a.T == 1 && a.B <= direct_rows; }

  void run() const {
    if (direct())
      pad();
    else if (a.packed != weights_packed)
      pack();
    const int64_t tiles = (a.B + a.b_per_core - 1) / a.b_per_core;
    const int64_t members = a.cores_d < panels ? a.cores_d : panels;
    parallel_teams(a.region, a.team_size, a.threads, members, a.N * tiles,
                   [&](int64_t i, int64_t place, Team& team) {
                     const int64_t b0 = i % tiles * a.b_per_core;
                     const int64_t rows = a.B - b0 < a.b_per_core ? a.B - b0 : a.b_per_core;
                     Item{*this, i / tiles, b0, rows, scratch + place * scratch_size, team}.run();
                   });
  }

  void pack() const {
    const int64_t threads = pack_threads<Real>(a.N * Gr * a.D * a.D, a.threads);
    parallel_for(a.region, threads, a.N * panels, [&](int64_t i, int64_t) {
      const int64_t n = i / panels, panel = i % panels;
      pack_panel<S, Gr, d_per_register>(a.r, panel_of(n, panel), n, panel, a.N, a.D, a.D);
    });
    pad();
  }

  void pad() const {
    for (int64_t n = 0; n < a.N; ++n) {
      pad_rows(a.bias, bias + n * G * width, G, n, a.N, a.D, width);
      pad_rows(a.weights, weights + n * Cell::weights * width, Cell::weights, n, a.N, a.D, width);
    }
  }

  Real* panel_of(int64_t n, int64_t panel) const {
    return packed + (n * panels + panel) * a.D * Gr * d_per_register;
  }

  struct Item {
    using Pointwise = flashrnn::Pointwise<Cell, S, V, alone, Item>;

    const Forward& f;
    int64_t n, b0, rows;
    Real* scratch;  // h in, h out, then the other states: [states + 1][b_per_core][row]
    Team& team;
    int64_t t = 0;
    RowTiles<b_per_register> tiles{rows};

    Real* plane(int64_t k) const { return scratch + k * f.a.b_per_core * f.row; }
    Real* h_in() const { return plane(t & 1); }
    Real* h_out() const { return plane(1 - (t & 1)); }
    // The other states are read and written by one unit alone, so in place.
    Real* state_in(int s) const { return s == 0 ? h_in() : plane(s + 1); }
    Real* state_out(int s) const { return s == 0 ? h_out() : plane(s + 1); }
    // Each member of the team has its own sums and places.
    Real* own() const { return scratch + f.states_size + team.rank * f.member_size; }
    Place* places() const { return reinterpret_cast<Place*>(own() + f.sums_size); }
    // A row's sums of a gate, from a stretch of terms to the next and to the pointwise part: of the
    // panel at hand, or of all panels.
    Real* partial(int64_t b, int slot) const {
      const int64_t units = alone ? f.width : d_per_register;
      return own() + (b * sums + slot) * units;
    }
    // The unit with which they begin.
    static int64_t begin(int64_t panel) { return alone ? 0 : panel * d_per_register; }

    void run() {
      const auto& a = f.a;
      const int64_t first = team.begin(f.panels), last = team.end(f.panels);
      const int64_t from = first * d_per_register, to = last * d_per_register;
      for (int s = 0; s < states; ++s)
        for (int64_t b = 0; b < rows; ++b)
          for (int64_t d = from; d < to; ++d)
            state_in(s)[b * f.row + d] =
                a.initial != nullptr && d < a.D ? a.initial[at(s, b) + d] : 0;
      const int64_t steps = a.order.longest(b0, rows, a.T);
      for (; t < steps; ++t) {
        team.meet();
        point();
        for (int64_t k = first; k < last; ++k) {
          const int64_t panel = t & 1 ? last - 1 - (k - first) : k;
          if (f.direct()) {
            direct(panel);
          } else {
            products(panel, k + 1 == last ? panel : panel + (t & 1 ? -1 : 1));
            if (!alone) Pointwise{*this}.panels(panel, panel + 1);
          }
        }
        if (alone && !f.direct()) Pointwise{*this}.panels(first, last);
      }
      if (a.order.lengths != nullptr && team.rank == 0) clear_ended(steps);
      const int64_t count = (to < a.D ? to : a.D) - from;
      for (int s = 0; s < states; ++s)
        for (int64_t b = 0; b < rows; ++b)
          std::memcpy(a.last + at(s, b) + from, state_in(s) + b * f.row + from,
                      count * sizeof(Real));
    }

    int64_t at(int s, int64_t b) const { return ((s * f.a.B + b0 + b) * f.a.N + n) * f.a.D; }

    // Outputs of steps that no row of this item has.
    void clear_ended(int64_t steps) const {
      const auto& a = f.a;
      for (int s = 0; s < a.states_kept; ++s)
        for (int64_t b = 0; b < rows; ++b)
          for (int64_t step = steps; step < a.T; ++step)
            std::memset(a.states + s * a.states_s + (b0 + b) * a.states_b +
                            (a.order.start + step) * a.states_t + n * a.states_n,
                        0, a.D * sizeof(Real));
    }

    // Say where every row stands, once a step.
    void point() const {
      const auto& a = f.a;
      for (int64_t b = 0; b < rows; ++b) {
        const int64_t at = a.order.position(b0 + b, t);
        Place& place = places()[b];
        place.wx = a.wx + (b0 + b) * a.wx_b + (a.ordered ? t : at) * a.wx_t + n * a.wx_n;
        place.states = a.states + (b0 + b) * a.states_b + at * a.states_t + n * a.states_n;
        place.saved = a.saved;
        if (a.saved != nullptr)
          place.saved += saved_offset(a, a.order.start + t, b0 + b, n, 0, Cell::saved, W);
      }
    }

    // One panel of a step: a stretch of terms for all rows, then the next stretch; what comes after
    // it, perhaps of the panel `next`, is fetched meanwhile.
    void products(int64_t panel, int64_t next) const {
      const bool recurrent = Gr > 0 && (t + f.a.order.start > 0 || f.a.initial != nullptr);
      const int64_t terms = recurrent ? f.a.D : 0;
      for (int64_t k = 0; k == 0 || k < terms; k += depth) {
        const Real* soon = f.panel_of(n, k + depth < terms ? panel : next);
        if (k + depth < terms) soon += (k + depth) * Gr * d_per_register;
        const int64_t pace = tiles.count > 1 ? Gr * d_per_register / tiles.count + 1 : 0;
        tiles.each([&](auto count, int64_t b) __attribute__((always_inline)) {
          tile<count>(panel, b, k, terms, soon, pace);
          soon += pace * depth;
        });
      }
    }

    // The terms of a stretch from `first` on, of all `terms`, onto the sums so far.
    template <int Rows>
    __attribute__((noinline)) void tile(int64_t panel, int64_t b, int64_t first, int64_t terms,
                                        const Real* soon, int64_t pace) const {
      const auto& a = f.a;
      const int64_t d0 = panel * d_per_register;
      if (a.order.ended(b0 + b, Rows, t)) return;
      const bool last = first + depth >= terms;
      Vec sum[Rows][sums][V] = {};
      if (first == 0) {
        if (d0 + d_per_register <= a.D)
          begin_sums<true>(sum, b, d0);
        else
          begin_sums<false>(sum, b, d0);
        prefetch_next<Rows>(b, d0);
      }
      if (last && b == 0)  // the pointwise part sees to the others
        for (int i = 0; i < Rows; ++i) prefetch_results(b + i, d0);
      if constexpr (Gr > 0) {
        accumulate(sum, f.panel_of(n, panel) + first * Gr * d_per_register,
                   h_in() + b * f.row + first, last ? terms - first : depth, soon, pace);
        unroll<Rows * Gr * V>([&](auto j) __attribute__((always_inline)) {
          constexpr int i = j / (Gr * V), g = j / V % Gr, v = j % V;
          Real* so_far = partial(b + i, g) + d0 - begin(panel) + v * W;
          S::store(so_far, first > 0 ? S::load(so_far) + sum[i][g][v] : sum[i][g][v]);
        });
      }
    }

    // whole: all units of the panel exist.
    template <bool whole, int Rows>
    FLASHRNN_INLINE void begin_sums(Vec (&sum)[Rows][sums][V], int64_t b, int64_t d0) const {
      unroll<Gr>([&](auto j) __attribute__((always_inline)) {
        unroll<Rows>([&](auto i) __attribute__((always_inline)) {
          unroll<V>([&](auto v) __attribute__((always_inline)) {
            sum[i][j][v] = input<Cell::recurrent_gate[j], whole>(b + i, d0 + v * W);
          });
        });
      });
    }

    // A panel of a step, from weights as they lie: each is read from memory for the first row.
    __attribute__((noinline)) void direct(int64_t panel) const {
      const auto& a = f.a;
      const int64_t end = (panel + 1) * d_per_register;
      const bool recurrent = Gr > 0 && a.initial != nullptr;
      for (int64_t d = panel * d_per_register; d < end && d < a.D; d += W) {
        typename Several<S, 1>::Vec gate[direct_rows][G];
        for (int64_t b = 0; b < rows; ++b) {
          unroll<G>([&](auto g) __attribute__((always_inline)) {
            gate[b][g].parts[0] = input<g>(b, d);
          });
        }
        for (int g = 0; recurrent && g < Gr; ++g)
          for (int64_t b = 0; b < rows; ++b)
            gate[b][Cell::recurrent_gate[g]].parts[0] += dot_products<S>(
                a.r + ((g * a.N + n) * a.D + d) * a.D, a.D - d, h_in() + b * f.row, a.D);
        for (int64_t b = 0; b < rows; ++b)
          if (a.order.ended(b0 + b, 1, t))
            keep(b, d);
          else
            Pointwise{*this}.template finish<1, 1>(gate[b], b, d);
      }
    }

    // sum[i][g] += sum over k of packed[k][g] h[i][k], k < count; fetches `soon`, `pace` numbers
    // further for each k.
    template <int Rows>
    FLASHRNN_INLINE void accumulate(Vec (&sum)[Rows][sums][V], const Real* packed, const Real* h,
                                    int64_t count, const Real* soon, int64_t pace) const {
      const Real* rows[Rows];
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        rows[i] = h + i * f.row;
        keep_address(rows[i]);
      });
      repeat<Rows * sums * V>(count, [&](int64_t k) __attribute__((always_inline)) {
        if constexpr (b_per_register > 1) {
          __builtin_prefetch(soon);
          soon += pace;
        }
        Vec x[Rows];
        unroll<Rows>([&](auto i) __attribute__((always_inline)) {
          x[i] = S::broadcast(rows[i][k]);
        });
        unroll<sums * V>([&](auto j) __attribute__((always_inline)) {
          Vec weight = S::load(packed + (k * sums * V + j) * W);
          S::keep_in_register(weight);
          unroll<Rows>([&](auto i) __attribute__((always_inline)) {
            sum[i][j / V][j % V] = S::fma(weight, x[i], sum[i][j / V][j % V]);
          });
        });
      });
    }

    // Wx of the next step for this tile, into the second cache: its rows lie too far apart for the
    // hardware to foresee.
    template <int Rows>
    FLASHRNN_INLINE void prefetch_next(int64_t b, int64_t d) const {
      const auto& a = f.a;
      if (t + 1 >= a.T) return;
      const int64_t next = (a.order.reverse && !a.ordered ? -a.wx_t : a.wx_t) + d;
      for (int i = 0; i < Rows; ++i)
        for (int g = 0; g < Cell::inputs; ++g)
          for (int64_t v = 0; v < V; ++v)
            if (v == 0 || d + v * W < a.D)
              __builtin_prefetch(places()[b + i].wx + next + g * a.wx_g + v * W, 0, 2);
    }

    // Where a row's results of a panel will go: a store to a line that is in no cache waits for it,
    // and the lines of several rows are too far apart for the hardware to foresee. A few rows at a
    // time: the lines of a whole tile, asked for at once, would keep its own loads waiting.
    FLASHRNN_INLINE void prefetch_results(int64_t b, int64_t d) const {
      const auto& a = f.a;
      const Place& place = places()[b];
      for (int64_t v = 0; v < V; ++v) {
        if (v > 0 && d + v * W >= a.D) break;
        for (int s = 0; s < states && s < a.states_kept; ++s)
          __builtin_prefetch(place.states + s * a.states_s + d + v * W, 1);
        for (int k = 0; k < Cell::saved && place.saved != nullptr; ++k)
          __builtin_prefetch(place.saved + (d + v * W) * Cell::saved + k * W, 1);
      }
    }

    FLASHRNN_INLINE Vec bias_of(int g, int64_t d) const {
      return S::load(f.bias + (n * G + g) * f.width + d);
    }

    // Wx + bias of one gate. whole: of a vector whose units all exist.
    template <int g, bool whole = false>
    FLASHRNN_INLINE Vec input(int64_t b, int64_t d) const {
      const auto& a = f.a;
      const Vec bias = bias_of(g, d);
      constexpr int slot = Cell::input_slot[g];
      if constexpr (slot < 0) return bias;
      if (!whole && d >= a.D) return bias;
      const Real* wx = places()[b].wx + slot * a.wx_g + d;
      return (whole ? S::load(wx) : S::load(wx, a.D - d)) + bias;
    }

    // A row that has ended keeps its states; its outputs are zero.
    void keep(int64_t b, int64_t d) const {
      const auto& a = f.a;
      S::store(h_out() + b * f.row + d, S::load(h_in() + b * f.row + d));
      for (int s = 0; s < a.states_kept; ++s)
        S::store(places()[b].states + s * a.states_s + d, Vec{}, a.D - d);
    }
  };
};

}  // namespace flashrnn
