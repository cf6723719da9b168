// The backward recurrence of any cell, all T steps in one call, last step first.
//
// A work item is one head and up to b_per_core rows of the batch. In each step, for each panel of
// units, the product of the next step's gate gradients with R accumulates as in forward.hpp; with
// the loss's own gradients and what the states carry it becomes the cotangent of the new states; the
// cell's derivative turns it into the gradients of the gates. dR and db are sums over all steps
// of those, taken outside, as one product.
#pragma once

#include "cpu/math.hpp"
#include "cpu/order.hpp"
#include "cpu/panels.hpp"

namespace flashrnn {

// Mirrored by flashrnn/runtime/launch.py; see ForwardArguments.
template <class Real>
struct BackwardArguments {
  const Real* r;        // [G_r, N, D, P] contiguous
  const Real* weights;  // [K, N, D] contiguous, or null
  const Real* initial;  // [S, B, 1, N, D] contiguous, or null for zeros
  const Real* states;   // [S, B, T, N, D], of the whole sequence
  int64_t states_s, states_b, states_t, states_n;
  const Real* saved;     // as the forward pass wrote it
  const Real* d_states;  // [d_states_kept, B, T, N, D], or null
  int64_t d_states_s, d_states_b, d_states_t, d_states_n, d_states_kept;
  const Real* d_last;  // [S, B, 1, N, D] contiguous, or null
  Real* d_gates;       // [B, T, G, N, D]
  int64_t d_gates_b, d_gates_t, d_gates_g, d_gates_n;
  Real* d_initial;  // [S, B, 1, N, D] contiguous, or null if nobody asks
  Real* d_weights;  // [B, K, N, D] contiguous: per row of the batch
  Real* workspace;
  int64_t B, T, N, D, b_per_core, cores_d, threads;
  int64_t packed;  // the workspace still holds the weights of an earlier call
  ParallelRegion region;
  TeamSize team_size;
  Order order;
  int64_t ordered;  // d_gates takes the steps as they come, from order.start on
  double clip;      // bound of what flows back through time into h; infinity for none
  int64_t cut;      // nothing flows back through R
};

template <class Cell, class S, int b_per_register, int d_per_register>
struct Backward {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  using Arguments = BackwardArguments<Real>;
  static constexpr int W = S::lanes, V = d_per_register / W, G = Cell::gates;
  static constexpr int Gr = Cell::recurrent, states = Cell::states, K = Cell::weights;
  static constexpr int64_t depth = stretch<S>;
  static_assert(d_per_register % W == 0 && V >= 1, "a panel is whole vectors");

  const Arguments& a;
  int64_t panels, width, row;
  Real *packed, *weights, *scratch;
  int64_t scratch_size;

  explicit Backward(const Arguments& arguments, Real* workspace, int64_t* needed = nullptr)
      : a(arguments) {
    panels = (a.D + d_per_register - 1) / d_per_register;
    width = panels * d_per_register;
    row = width + line<Real>;
    Workspace<Real> space{workspace};
    packed = space.take(a.N * panels * Gr * a.D * d_per_register);
    weights = space.take(a.N * K * width);
    scratch_size = round_up((2 * Gr + states + K + 1) * a.b_per_core * row, line<Real>);
    scratch = space.take(a.threads * scratch_size);
    if (needed != nullptr) *needed = space.used;
  }

  void run() const {
    if (!a.packed) pack();
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
      pack_over_gd<Gr, d_per_register>(a.r, panel_of(n, panel), n, panel, a.N, a.D);
      if (panel == 0) pad_rows(a.weights, weights + n * K * width, K, n, a.N, a.D, width);
    });
  }

  Real* panel_of(int64_t n, int64_t panel) const {
    return packed + (n * panels + panel) * Gr * a.D * d_per_register;
  }

  struct Item {
    const Backward& f;
    int64_t n, b0, rows;
    Real* scratch;  // gate gradients [2][b][Gr][row], then [b][row]: carried states, weights, d_h
    Team& team;
    int64_t t = 0, steps = 0;
    RowTiles<b_per_register> tiles{rows};
    int64_t first = team.begin(f.panels), last = team.end(f.panels);  // this member's panels
    int64_t from = first * d_per_register;                            // and units
    int64_t to = last * d_per_register < f.a.D ? last * d_per_register : f.a.D;

    // Gate gradients of the step before in time order (written now) and of the one behind (read).
    Real* gates_at(int64_t step, int64_t b) const {
      return scratch + ((step & 1) * f.a.b_per_core + b) * Gr * f.row;
    }
    Real* carried(int s, int64_t b) const {
      return scratch + ((2 * Gr + s) * f.a.b_per_core + b) * f.row;
    }
    Real* weight_sum(int k, int64_t b) const {
      return scratch + ((2 * Gr + states + k) * f.a.b_per_core + b) * f.row;
    }
    // What the next step's gates send back into h.
    Real* d_h(int64_t b) const {
      return scratch + ((2 * Gr + states + K) * f.a.b_per_core + b) * f.row;
    }
    int64_t at(int s, int64_t b) const { return ((s * f.a.B + b0 + b) * f.a.N + n) * f.a.D; }

    void run() {
      const auto& a = f.a;
      for (int64_t b = 0; b < rows; ++b) {
        for (int s = 0; s < states; ++s)
          for (int64_t d = from; d < last * d_per_register; ++d)
            carried(s, b)[d] = a.d_last != nullptr && d < a.D ? a.d_last[at(s, b) + d] : 0;
        for (int k = 0; k < K; ++k)
          for (int64_t d = from; d < last * d_per_register; ++d) weight_sum(k, b)[d] = 0;
      }
      steps = a.order.longest(b0, rows, a.T);
      if (a.order.lengths != nullptr)
        for (t = a.T - 1; t >= steps; --t)
          for (int64_t b = 0; b < rows; ++b) skip(b);
      for (t = steps - 1; t >= 0; --t) step();
      const int64_t bytes = (to - from) * sizeof(Real);
      if (a.d_initial != nullptr) {
        step();  // t = -1: only the product with the first step's gate gradients is left
        for (int s = 0; s < states; ++s)
          for (int64_t b = 0; b < rows; ++b)
            std::memcpy(a.d_initial + at(s, b) + from, carried(s, b) + from, bytes);
      }
      for (int k = 0; k < K; ++k)
        for (int64_t b = 0; b < rows; ++b)
          std::memcpy(a.d_weights + (((b0 + b) * K + k) * a.N + n) * a.D + from,
                      weight_sum(k, b) + from, bytes);
    }

    // The products of all panels first, then the cell's derivative row by row: what it reads and
    // writes is contiguous along a row.
    void step() {
      team.meet();
      const bool multiply = Gr > 0 && t + 1 < steps && !f.a.cut;
      for (int64_t k = first; multiply && k < last; ++k) {
        const int64_t panel = t & 1 ? last - 1 - (k - first) : k;
        products(panel, k + 1 == last ? panel : panel + (t & 1 ? -1 : 1));
      }
      for (int64_t b = 0; b < rows; ++b) {
        const bool ended = f.a.order.ended(b0 + b, 1, t < 0 ? 0 : t);
        if (ended && t >= 0) skip(b);
        if (ended) continue;
        if (t >= 0)
          multiply ? finish<true>(b) : finish<false>(b);
        else
          leave(b, multiply);
      }
    }

    static FLASHRNN_INLINE void add(Real* to, Vec x) { S::store(to, S::load(to) + x); }

    // One panel of a step: a stretch of terms for all rows, then the next stretch; what comes after
    // it, perhaps of the panel `next`, is fetched meanwhile.
    void products(int64_t panel, int64_t next) const {
      const int64_t terms = Gr * f.a.D;
      const int64_t pace = tiles.count > 1 ? d_per_register / tiles.count + 1 : 0;
      for (int64_t k = 0; k < terms; k += depth) {
        const Real* soon = k + depth < terms ? f.panel_of(n, panel) + (k + depth) * d_per_register
                                             : f.panel_of(n, next);
        tiles.each([&](auto count, int64_t b) __attribute__((always_inline)) {
          product<count>(panel, b, k, soon, pace);
          soon += pace * depth;
        });
      }
    }

    // d_h[b][p] += (or =) sum over terms (g, d) from `first` on, a stretch of them, of
    // (gate gradients of step t + 1)[g, d] R[g, d, p].
    template <int Rows>
    __attribute__((noinline)) void product(int64_t panel, int64_t b, int64_t first,
                                           const Real* soon, int64_t pace) const {
      const auto& a = f.a;
      if (a.order.ended(b0 + b, Rows, t < 0 ? 0 : t)) return;
      Vec sum[Rows][V] = {};
      const int64_t end = first + depth < Gr * a.D ? first + depth : Gr * a.D;
      const Real* packed = f.panel_of(n, panel) + first * d_per_register;
      int64_t g = first / a.D, d = first % a.D;
      for (int64_t left = end - first; left > 0; ++g, d = 0) {
        const int64_t count = left < a.D - d ? left : a.D - d;
        const Real* d_gate[Rows];
        unroll<Rows>([&](auto i) __attribute__((always_inline)) {
          d_gate[i] = gates_at(t + 1, b + i) + g * f.row + d;
          keep_address(d_gate[i]);
        });
        repeat<Rows * V>(count, [&](int64_t l) __attribute__((always_inline)) {
          if constexpr (b_per_register > 1) {
            __builtin_prefetch(soon);
            soon += pace;
          }
          const auto weight = [&](int v) __attribute__((always_inline)) {
            Vec r = S::load(packed + l * d_per_register + v * W);
            S::keep_in_register(r);
            return r;
          };
          // The fewer of the factors wait in registers.
          if constexpr (Rows < V) {
            Vec x[Rows];
            unroll<Rows>([&](auto i) __attribute__((always_inline)) {
              x[i] = S::broadcast(d_gate[i][l]);
            });
            unroll<V>([&](auto v) __attribute__((always_inline)) {
              const Vec r = weight(v);
              unroll<Rows>([&](auto i) __attribute__((always_inline)) {
                sum[i][v] = S::fma(r, x[i], sum[i][v]);
              });
            });
          } else {
            Vec r[V];
            unroll<V>([&](auto v) __attribute__((always_inline)) { r[v] = weight(v); });
            unroll<Rows>([&](auto i) __attribute__((always_inline)) {
              const Vec x = S::broadcast(d_gate[i][l]);
              unroll<V>([&](auto v) __attribute__((always_inline)) {
                sum[i][v] = S::fma(r[v], x, sum[i][v]);
              });
            });
          }
        });
        packed += count * d_per_register;
        left -= count;
      }
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          Real* to = d_h(b + i) + panel * d_per_register + v * W;
          S::store(to, first > 0 ? S::load(to) + sum[i][v] : sum[i][v]);
        });
      });
    }

    // Into the states before the first step, through time.
    void leave(int64_t b, bool multiply) const {
      for (int64_t d = from; d < to; d += W) {
        const Vec through = multiply ? S::load(d_h(b) + d) : Vec{};
        S::store(carried(0, b) + d, clipped(through + S::load(carried(0, b) + d)));
      }
    }

    FLASHRNN_INLINE Vec clipped(Vec d_h) const {
      const Real clip = static_cast<Real>(f.a.clip);
      return S::clamp(d_h, -clip, clip);
    }

    Real* d_gates_at(int64_t b) const {
      const auto& a = f.a;
      const int64_t at = a.ordered ? t : a.order.position(b0 + b, t);
      return a.d_gates + (b0 + b) * a.d_gates_b + at * a.d_gates_t + n * a.d_gates_n;
    }

    // A row that has ended: its gates have no gradients, and what it carries waits.
    void skip(int64_t b) const {
      for (int g = 0; g < G; ++g) {
        std::memset(d_gates_at(b) + g * f.a.d_gates_g + from, 0, (to - from) * sizeof(Real));
        if (Cell::recurrent_slot[g] >= 0)
          std::memset(gates_at(t, b) + Cell::recurrent_slot[g] * f.row + from, 0,
                      (last * d_per_register - from) * sizeof(Real));
      }
    }

    // What `finish` reads a few rows later: further down in the batch, or earlier in time. Between
    // the rows of a batch, and back through time, the hardware foresees nothing.
    struct Soon {
      static constexpr int64_t rows_ahead = 4;
      const Real *saved, *states, *d_states;
      int64_t states_s, d_states_s, d_states_kept;

      Soon(const Item& item, int64_t row) {
        const auto& a = item.f.a;
        const int64_t later = row + rows_ahead, steps = later / item.rows;
        const int64_t b = item.b0 + later % item.rows, t = item.t > steps ? item.t - steps : 0;
        const int64_t at = a.order.position(b, t);
        saved = a.saved + saved_offset(a, a.order.start + t, b, item.n, 0, Cell::saved, W);
        states = a.states + b * a.states_b + at * a.states_t + item.n * a.states_n;
        d_states_kept = a.d_states_kept;
        d_states = d_states_kept == 0 ? nullptr
                                      : a.d_states + b * a.d_states_b + at * a.d_states_t +
                                            item.n * a.d_states_n;
        states_s = a.states_s;
        d_states_s = a.d_states_s;
      }

      FLASHRNN_INLINE void prefetch(int64_t d) const {
        for (int k = 0; k < Cell::saved; ++k)
          __builtin_prefetch(saved + d * Cell::saved + k * W);
        for (int s = 0; s < Backward::states; ++s) {
          if (Cell::reads_next[s]) __builtin_prefetch(states + s * states_s + d);
          if (s < d_states_kept) __builtin_prefetch(d_states + s * d_states_s + d);
        }
      }
    };

    // The cell's derivative for one row.
    template <bool multiply>
    __attribute__((noinline)) void finish(int64_t b) const {
      const auto& a = f.a;
      constexpr int weights = K > 0 ? K : 1, saved = Cell::saved > 0 ? Cell::saved : 1;
      const int64_t D = a.D, step = a.order.start + t;
      const int64_t now = a.order.position(b0 + b, t);
      const bool clip = step + 1 < a.order.length(b0 + b);
      const Real* saved_at = a.saved + saved_offset(a, step, b0 + b, n, from, Cell::saved, W);
      const Real *state_at[states], *next_at[states], *d_next_at[states];
      for (int s = 0; s < states; ++s) {
        const Real* row = a.states + s * a.states_s + (b0 + b) * a.states_b + n * a.states_n;
        next_at[s] = row + now * a.states_t;
        state_at[s] = nullptr;
        if (step > 0)
          state_at[s] = row + a.order.position(b0 + b, t - 1) * a.states_t;
        else if (a.initial != nullptr)
          state_at[s] = a.initial + at(s, b);
        d_next_at[s] = nullptr;
        if (s < a.d_states_kept)
          d_next_at[s] = a.d_states + s * a.d_states_s + (b0 + b) * a.d_states_b +
                         now * a.d_states_t + n * a.d_states_n;
      }
      const Soon soon(*this, b);
      Real* const d_gates = d_gates_at(b);
      Real* const d_recurrent = gates_at(t, b);
      const Real* const through = d_h(b);
      const int64_t d_gates_g = a.d_gates_g;
      for (int64_t d = from; d < to; d += W, saved_at += Cell::saved * W) {
        const int64_t count = D - d;
        Vec state[states], next[states], weight[weights], save[saved], d_next[states];
        Vec d_gate[G], d_state[states], d_weight[weights];
        for (int s = 0; s < states; ++s) {
          d_next[s] = S::load(carried(s, b) + d);
          if (s == 0) {
            if (multiply) d_next[0] += S::load(through + d);
            if (clip) d_next[0] = clipped(d_next[0]);
          }
          if (d_next_at[s] != nullptr) d_next[s] += S::load(d_next_at[s] + d, count);
          if (Cell::reads_next[s]) next[s] = S::load(next_at[s] + d, count);
          if (Cell::reads_state[s])
            state[s] = state_at[s] != nullptr ? S::load(state_at[s] + d, count) : Vec{};
        }
        soon.prefetch(d);
        for (int k = 0; k < K; ++k) weight[k] = S::load(f.weights + (n * K + k) * f.width + d);
        for (int k = 0; k < Cell::saved; ++k) save[k] = S::load(saved_at + k * W);

        Cell::template backward<S>(state, next, weight, save, d_next, d_gate, d_state, d_weight);

        for (int g = 0; g < G; ++g) {
          S::store(d_gates + g * d_gates_g + d, d_gate[g], count);
          if (Cell::recurrent_slot[g] >= 0)
            S::store(d_recurrent + Cell::recurrent_slot[g] * f.row + d, d_gate[g]);
        }
        for (int s = 0; s < states; ++s) S::store(carried(s, b) + d, d_state[s]);
        for (int k = 0; k < K; ++k) add(weight_sum(k, b) + d, d_weight[k]);
      }
    }
  };
};

}  // namespace flashrnn
