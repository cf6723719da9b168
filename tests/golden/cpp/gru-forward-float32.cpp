// gru, forward, float32: generated from the cell's equations.
// Tiling: 4 rows x 16 units in registers.
#include "cpu/forward.hpp"

using Real = float;
constexpr int vector_bytes = 32;
constexpr int b_per_register = 4;
constexpr int d_per_register = 16;

struct Cell {
  // gates: n_rec r z n_in; states: h
  static constexpr int gates = 4, states = 1;
  static constexpr int weights = 0, saved = 4;
  static constexpr int recurrent = 3, inputs = 3;
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {0, 1, 2, -1};
  static constexpr int input_slot[] = {-1, 0, 1, 2};
  static constexpr int recurrent_gate[] = {0, 1, 2};
  static constexpr int input_gate[] = {1, 2, 3};
  // What the derivative reads of the states before and after the step.
  static constexpr bool reads_state[] = {true};
  static constexpr bool reads_next[] = {false};
  // Whether anything is computed for nothing but to be saved.
  static constexpr bool only_saved = false;

  // What is saved for the backward pass: its price (written and read once), and that of doing
  // without, in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void forward(const Vec* gate, [[maybe_unused]] const Vec* state,
                                      [[maybe_unused]] const Vec* weight, Vec* next,
                                      [[maybe_unused]] Vec* save) {
    namespace math = flashrnn::math;
    const Vec x0 = math::sigmoid<S>(gate[2]);
    const Vec x1 = x0 * state[0];
    const Vec x2 = S::broadcast(1.0) - x0;
    const Vec x3 = math::sigmoid<S>(gate[1]);
    const Vec x4 = S::fma(x3, gate[0], gate[3]);
    const Vec x5 = math::tanh<S>(x4);
    const Vec x6 = S::fma(x2, x5, x1);
    next[0] = x6;
    save[0] = x0;  // sigmoid(g.z): 16, otherwise 36
    save[1] = x3;  // sigmoid(g.r): 16, otherwise 36
    save[2] = gate[0];  // g.n_rec: 16, no other way
    save[3] = x5;  // tanh(g.n_in + sigmoid(g.r) * g.n_rec): 16, otherwise 36
  }

  // Forward values: 4 are read as saved, for 64; others are recomputed where marked, for 6,
  // in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void backward([[maybe_unused]] const Vec* state,
                                       [[maybe_unused]] const Vec* next,
                                       [[maybe_unused]] const Vec* weight,
                                       [[maybe_unused]] const Vec* save, const Vec* d_next,
                                       Vec* d_gate, Vec* d_state,
                                       [[maybe_unused]] Vec* d_weight) {
    namespace math = flashrnn::math;
    const Vec x0 = S::broadcast(1.0) - save[0];  // recomputed: 1
    const Vec x1 = d_next[0] * x0;
    const Vec x2 = d_next[0] * state[0];
    const Vec x3 = S::fma(-d_next[0], save[3], x2);
    const Vec x4 = S::fma(-save[3], save[3], S::broadcast(1.0));  // recomputed: 2
    const Vec x5 = x1 * x4;
    const Vec x6 = x5 * save[1];
    const Vec x7 = save[0] * x0;  // recomputed: 1
    const Vec x8 = x3 * x7;
    const Vec x9 = x5 * save[2];
    const Vec x10 = S::broadcast(1.0) - save[1];  // recomputed: 1
    const Vec x11 = save[1] * x10;  // recomputed: 1
    const Vec x12 = x9 * x11;
    const Vec x13 = d_next[0] * save[0];
    d_gate[0] = x6;
    d_gate[1] = x12;
    d_gate[2] = x8;
    d_gate[3] = x5;
    d_state[0] = x13;
  }
};

using S = flashrnn::Simd<Real, vector_bytes>;
using Kernel = flashrnn::Forward<Cell, S, b_per_register, d_per_register>;

// Size of the workspace in numbers.
FLASHRNN_EXPORT int64_t flashrnn_workspace(const Kernel::Arguments* arguments) {
  int64_t needed = 0;
  Kernel(*arguments, nullptr, &needed);
  return needed;
}

FLASHRNN_EXPORT void flashrnn_run(const Kernel::Arguments* arguments) {
  Kernel(*arguments, arguments->workspace).run();
}
