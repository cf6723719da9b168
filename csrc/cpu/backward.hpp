// The backward recurrence of any cell, all T steps in one call, last step first.
//
// A work item is one head and up to b_per_core rows of the batch. In each step, for each panel of
// units, the product of the next step's gate gradients with R accumulates in registers; with the
// loss's own gradients and what the states carry it becomes the cotangent of the new states; the
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
  int64_t B, T, N, D, b_per_core, threads;
  int64_t packed;  // the workspace still holds the weights of an earlier call
  ParallelRegion region;
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
    scratch_size = round_up((2 * Gr + states + K) * a.b_per_core * row, line<Real>);
    scratch = space.take(a.threads * scratch_size);
    if (needed != nullptr) *needed = space.used;
  }

  void run() const {
    if (!a.packed) pack();
    const int64_t tiles = (a.B + a.b_per_core - 1) / a.b_per_core;
    parallel_for(a.region, a.threads, a.N * tiles, [&](int64_t i, int64_t worker) {
      const int64_t b0 = i % tiles * a.b_per_core;
      const int64_t rows = a.B - b0 < a.b_per_core ? a.B - b0 : a.b_per_core;
      Item{*this, i / tiles, b0, rows, scratch + worker * scratch_size}.run();
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
    Real* scratch;  // gate gradients [2][b][Gr][row], carried [states][b][row], weights [K][b][row]
    int64_t t = 0, steps = 0;

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
    int64_t at(int s, int64_t b) const { return ((s * f.a.B + b0 + b) * f.a.N + n) * f.a.D; }

    void run() {
      const auto& a = f.a;
      for (int64_t b = 0; b < rows; ++b) {
        for (int s = 0; s < states; ++s)
          for (int64_t d = 0; d < f.width; ++d)
            carried(s, b)[d] = a.d_last != nullptr && d < a.D ? a.d_last[at(s, b) + d] : 0;
        for (int k = 0; k < K; ++k)
          for (int64_t d = 0; d < f.width; ++d) weight_sum(k, b)[d] = 0;
      }
      steps = a.order.longest(b0, rows, a.T);
      if (a.order.lengths != nullptr)
        for (t = a.T - 1; t >= steps; --t)
          for (int64_t b = 0; b < rows; ++b)
            for (int64_t d = 0; d < a.D; d += W) skip(b, d);
      for (t = steps - 1; t >= 0; --t) step();
      if (a.d_initial != nullptr) {
        step();  // t = -1: only the product with the first step's gate gradients is left
        for (int s = 0; s < states; ++s)
          for (int64_t b = 0; b < rows; ++b)
            std::memcpy(a.d_initial + at(s, b), carried(s, b), a.D * sizeof(Real));
      }
      for (int k = 0; k < K; ++k)
        for (int64_t b = 0; b < rows; ++b)
          std::memcpy(a.d_weights + (((b0 + b) * K + k) * a.N + n) * a.D, weight_sum(k, b),
                      a.D * sizeof(Real));
    }

    void step() const {
      for (int64_t k = 0; k < f.panels; ++k) {
        const int64_t panel = t & 1 ? f.panels - 1 - k : k;
        int64_t b = 0;
        for (; b + b_per_register <= rows; b += b_per_register) tile<b_per_register>(panel, b);
        remainder<b_per_register / 2>(panel, b);
      }
    }

    template <int Rows>
    FLASHRNN_INLINE void remainder(int64_t panel, int64_t b) const {
      if constexpr (Rows >= 1) {
        for (; b + Rows <= rows; b += Rows) tile<Rows>(panel, b);
        remainder<Rows / 2>(panel, b);
      }
    }

    template <int Rows>
    __attribute__((noinline)) void tile(int64_t panel, int64_t b) const {
      const auto& a = f.a;
      const int64_t d0 = panel * d_per_register;
      if (a.order.ended(b0 + b, Rows, t < 0 ? 0 : t)) {
        for (int64_t i = b; t >= 0 && i < b + Rows; ++i)
          for (int64_t d = d0; d < d0 + d_per_register && d < a.D; d += W) skip(i, d);
        return;
      }
      alignas(64) Real d_h[Rows][d_per_register];
      product<Rows>(panel, b, d_h);
      for (int i = 0; i < Rows; ++i)
        for (int64_t v = 0; v < V && d0 + v * W < a.D; ++v) {
          const Vec from_product = S::load(d_h[i] + v * W);
          if (t >= 0)
            finish(from_product, b + i, d0 + v * W);
          else
            leave(from_product, b + i, d0 + v * W);
        }
    }

    static FLASHRNN_INLINE void add(Real* to, Vec x) { S::store(to, S::load(to) + x); }

    // d_h[i][p] = sum over g, d of (gate gradients of step t + 1)[g, d] R[g, d, p].
    template <int Rows>
    FLASHRNN_INLINE void product(int64_t panel, int64_t b, Real (&d_h)[Rows][d_per_register]) const {
      const auto& a = f.a;
      Vec sum[Rows][V] = {};
      if (Gr > 0 && t + 1 < steps && !a.cut) {
        const Real* packed = f.panel_of(n, panel);
        for (int g = 0; g < Gr; ++g, packed += a.D * d_per_register) {
          const Real* d_gate[Rows];
          unroll<Rows>([&](auto i) __attribute__((always_inline)) {
            d_gate[i] = gates_at(t + 1, b + i) + g * f.row;
            keep_address(d_gate[i]);
          });
          repeat<Rows * V>(a.D, [&](int64_t d) __attribute__((always_inline)) {
            Vec r[V];
            unroll<V>([&](auto v) __attribute__((always_inline)) {
              r[v] = S::load(packed + d * d_per_register + v * W);
              S::keep_in_register(r[v]);
            });
            unroll<Rows>([&](auto i) __attribute__((always_inline)) {
              const Vec x = S::broadcast(d_gate[i][d]);
              unroll<V>([&](auto v) __attribute__((always_inline)) {
                sum[i][v] = S::fma(r[v], x, sum[i][v]);
              });
            });
          });
        }
      }
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          S::store(d_h[i] + v * W, sum[i][v]);
        });
      });
    }

    // Into the states before the first step, through time.
    FLASHRNN_INLINE void leave(Vec recurrent_d_h, int64_t b, int64_t d) const {
      if (f.a.order.ended(b0 + b, 1, 0)) return;
      Real* d_h = carried(0, b) + d;
      S::store(d_h, clipped(recurrent_d_h + S::load(d_h)));
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
    void skip(int64_t b, int64_t d) const {
      for (int g = 0; g < G; ++g) {
        S::store(d_gates_at(b) + g * f.a.d_gates_g + d, Vec{}, f.a.D - d);
        if (Cell::recurrent_slot[g] >= 0)
          S::store(gates_at(t, b) + Cell::recurrent_slot[g] * f.row + d, Vec{});
      }
    }

    // The cell's derivative for one row and one vector of units.
    FLASHRNN_INLINE void finish(Vec recurrent_d_h, int64_t b, int64_t d) const {
      const auto& a = f.a;
      if (a.order.ended(b0 + b, 1, t)) return skip(b, d);
      const int64_t count = a.D - d, step = a.order.start + t;
      constexpr int weights = K > 0 ? K : 1, saved = Cell::saved > 0 ? Cell::saved : 1;
      Vec state[states], next[states], weight[weights], save[saved], d_next[states];
      Vec d_gate[G], d_state[states], d_weight[weights];
      for (int s = 0; s < states; ++s) {
        const Real* row = a.states + s * a.states_s + (b0 + b) * a.states_b + n * a.states_n + d;
        const int64_t position = a.order.position(b0 + b, t);
        d_next[s] = S::load(carried(s, b) + d);
        if (s == 0) {
          d_next[0] += recurrent_d_h;
          if (step + 1 < a.order.length(b0 + b)) d_next[0] = clipped(d_next[0]);
        }
        if (s < a.d_states_kept)
          d_next[s] += S::load(a.d_states + s * a.d_states_s + (b0 + b) * a.d_states_b +
                                   position * a.d_states_t + n * a.d_states_n + d,
                               count);
        if (Cell::reads_next[s]) next[s] = S::load(row + position * a.states_t, count);
        if (Cell::reads_state[s]) {
          if (step > 0)
            state[s] = S::load(row + a.order.position(b0 + b, t - 1) * a.states_t, count);
          else
            state[s] = a.initial != nullptr ? S::load(a.initial + at(s, b) + d, count) : Vec{};
        }
      }
      for (int k = 0; k < K; ++k) weight[k] = S::load(f.weights + (n * K + k) * f.width + d);
      const int64_t vectors = (a.D + W - 1) / W;
      const Real* from =
          a.saved + (((step * a.B + b0 + b) * a.N + n) * vectors + d / W) * Cell::saved * W;
      for (int k = 0; k < Cell::saved; ++k) save[k] = S::load(from + k * W);

      Cell::template backward<S>(state, next, weight, save, d_next, d_gate, d_state, d_weight);

      Real* to = d_gates_at(b) + d;
      for (int g = 0; g < G; ++g) {
        S::store(to + g * a.d_gates_g, d_gate[g], count);
        if (Cell::recurrent_slot[g] >= 0)
          S::store(gates_at(t, b) + Cell::recurrent_slot[g] * f.row + d, d_gate[g]);
      }
      for (int s = 0; s < states; ++s) S::store(carried(s, b) + d, d_state[s]);
      for (int k = 0; k < K; ++k) add(weight_sum(k, b) + d, d_weight[k]);
    }
  };
};

}  // namespace flashrnn
