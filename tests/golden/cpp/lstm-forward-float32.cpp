// lstm, forward, float32: generated from the cell's equations.
// Tiling: 4 rows x 16 units in registers.
#include "cpu/forward.hpp"

using Real = float;
constexpr int vector_bytes = 32;
constexpr int b_per_register = 4;
constexpr int d_per_register = 16;

struct Cell {
  // gates: i f z o; states: h c
  static constexpr int gates = 4, states = 2;
  static constexpr int weights = 0, saved = 5;
  static constexpr int recurrent = 4, inputs = 4;
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {0, 1, 2, 3};
  static constexpr int input_slot[] = {0, 1, 2, 3};
  static constexpr int recurrent_gate[] = {0, 1, 2, 3};
  static constexpr int input_gate[] = {0, 1, 2, 3};
  // What the derivative reads of the states before and after the step.
  static constexpr bool reads_state[] = {false, true};
  static constexpr bool reads_next[] = {false, false};
  // Whether anything is computed for nothing but to be saved.
  static constexpr bool only_saved = false;

  // What is saved for the backward pass: its price (written and read once), and that of doing
  // without, in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void forward(const Vec* gate, [[maybe_unused]] const Vec* state,
                                      [[maybe_unused]] const Vec* weight, Vec* next,
                                      [[maybe_unused]] Vec* save) {
    namespace math = flashrnn::math;
    const Vec x0 = math::sigmoid<S>(gate[3]);
    const Vec x1 = math::sigmoid<S>(gate[1]);
    const Vec x2 = x1 * state[1];
    const Vec x3 = math::sigmoid<S>(gate[0]);
    const Vec x4 = math::tanh<S>(gate[2]);
    const Vec x5 = S::fma(x3, x4, x2);
    const Vec x6 = math::tanh<S>(x5);
    const Vec x7 = x0 * x6;
    next[0] = x7;
    next[1] = x5;
    save[0] = x0;  // sigmoid(g.o): 16, otherwise 36
    save[1] = x6;  // tanh(sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.z…: 16, otherwise 20
    save[2] = x4;  // tanh(g.z): 16, otherwise 36
    save[3] = x3;  // sigmoid(g.i): 16, otherwise 36
    save[4] = x1;  // sigmoid(g.f): 16, otherwise 36
  }

  // Forward values: 5 are read as saved, for 80; others are recomputed where marked, for 10,
  // in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void backward([[maybe_unused]] const Vec* state,
                                       [[maybe_unused]] const Vec* next,
                                       [[maybe_unused]] const Vec* weight,
                                       [[maybe_unused]] const Vec* save, const Vec* d_next,
                                       Vec* d_gate, Vec* d_state,
                                       [[maybe_unused]] Vec* d_weight) {
    namespace math = flashrnn::math;
    const Vec x0 = d_next[0] * save[0];
    const Vec x1 = d_next[0] * save[1];
    const Vec x2 = S::fma(-save[1], save[1], S::broadcast(1.0));  // recomputed: 2
    const Vec x3 = S::fma(x0, x2, d_next[1]);
    const Vec x4 = x3 * state[1];
    const Vec x5 = S::broadcast(1.0) - save[4];  // recomputed: 1
    const Vec x6 = save[4] * x5;  // recomputed: 1
    const Vec x7 = x4 * x6;
    const Vec x8 = x3 * save[4];
    const Vec x9 = x3 * save[2];
    const Vec x10 = x3 * save[3];
    const Vec x11 = S::fma(-save[2], save[2], S::broadcast(1.0));  // recomputed: 2
    const Vec x12 = x10 * x11;
    const Vec x13 = S::broadcast(1.0) - save[3];  // recomputed: 1
    const Vec x14 = save[3] * x13;  // recomputed: 1
    const Vec x15 = x9 * x14;
    const Vec x16 = S::broadcast(1.0) - save[0];  // recomputed: 1
    const Vec x17 = save[0] * x16;  // recomputed: 1
    const Vec x18 = x1 * x17;
    d_gate[0] = x15;
    d_gate[1] = x7;
    d_gate[2] = x12;
    d_gate[3] = x18;
    d_state[0] = S::broadcast(0.0);
    d_state[1] = x8;
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
