// peephole_lstm, backward, float32: generated from the cell's equations.
// Tiling: 4 rows x 16 units in registers.
#include "cpu/backward.hpp"

using Real = float;
constexpr int vector_bytes = 32;
constexpr int b_per_register = 4;
constexpr int d_per_register = 16;

struct Cell {
  // gates: i f z o; states: h c; weights: p.p_i p.p_f p.p_o
  static constexpr int gates = 4, states = 2;
  static constexpr int weights = 3, saved = 5;
  static constexpr int recurrent = 4, inputs = 4;
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {0, 1, 2, 3};
  static constexpr int input_slot[] = {0, 1, 2, 3};
  static constexpr int recurrent_gate[] = {0, 1, 2, 3};
  static constexpr int input_gate[] = {0, 1, 2, 3};
  // What the derivative reads of the states before and after the step.
  static constexpr bool reads_state[] = {false, true};
  static constexpr bool reads_next[] = {false, true};
  // Whether anything is computed for nothing but to be saved.
  static constexpr bool only_saved = false;

  // What is saved for the backward pass: its price (written and read once), and that of doing
  // without, in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void forward(const Vec* gate, [[maybe_unused]] const Vec* state,
                                      [[maybe_unused]] const Vec* weight, Vec* next,
                                      [[maybe_unused]] Vec* save) {
    namespace math = flashrnn::math;
    const Vec x0 = S::fma(weight[1], state[1], gate[1]);
    const Vec x1 = math::sigmoid<S>(x0);
    const Vec x2 = x1 * state[1];
    const Vec x3 = S::fma(weight[0], state[1], gate[0]);
    const Vec x4 = math::sigmoid<S>(x3);
    const Vec x5 = math::tanh<S>(gate[2]);
    const Vec x6 = S::fma(x4, x5, x2);
    const Vec x7 = S::fma(weight[2], x6, gate[3]);
    const Vec x8 = math::sigmoid<S>(x7);
    const Vec x9 = math::tanh<S>(x6);
    const Vec x10 = x8 * x9;
    next[0] = x10;
    next[1] = x6;
    save[0] = x8;  // sigmoid(g.o + p.p_o * (sigmoid(g.f + p.p_f * s.c)…: 16, otherwise 36
    save[1] = x9;  // tanh(sigmoid(g.f + p.p_f * s.c) * s.c + sigmoid(g…: 16, otherwise 20
    save[2] = x5;  // tanh(g.z): 16, otherwise 36
    save[3] = x4;  // sigmoid(g.i + p.p_i * s.c): 16, otherwise 36
    save[4] = x1;  // sigmoid(g.f + p.p_f * s.c): 16, otherwise 36
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
    const Vec x4 = S::broadcast(1.0) - save[0];  // recomputed: 1
    const Vec x5 = save[0] * x4;  // recomputed: 1
    const Vec x6 = x1 * x5;
    const Vec x7 = S::fma(x6, weight[2], x3);
    const Vec x8 = x7 * save[2];
    const Vec x9 = S::fma(-save[2], save[2], S::broadcast(1.0));  // recomputed: 2
    const Vec x10 = S::broadcast(1.0) - save[3];  // recomputed: 1
    const Vec x11 = save[3] * x10;  // recomputed: 1
    const Vec x12 = x8 * x11;
    const Vec x13 = x7 * state[1];
    const Vec x14 = x7 * save[3];
    const Vec x15 = x14 * x9;
    const Vec x16 = x12 * weight[0];
    const Vec x17 = S::fma(x7, save[4], x16);
    const Vec x18 = S::broadcast(1.0) - save[4];  // recomputed: 1
    const Vec x19 = save[4] * x18;  // recomputed: 1
    const Vec x20 = x13 * x19;
    const Vec x21 = S::fma(x20, weight[1], x17);
    const Vec x22 = x12 * state[1];
    const Vec x23 = x20 * state[1];
    const Vec x24 = x6 * next[1];
    d_gate[0] = x12;
    d_gate[1] = x20;
    d_gate[2] = x15;
    d_gate[3] = x6;
    d_state[0] = S::broadcast(0.0);
    d_state[1] = x21;
    d_weight[0] = x22;
    d_weight[1] = x23;
    d_weight[2] = x24;
  }
};

using S = flashrnn::Simd<Real, vector_bytes>;
using Kernel = flashrnn::Backward<Cell, S, b_per_register, d_per_register>;

// Size of the workspace in numbers.
FLASHRNN_EXPORT int64_t flashrnn_workspace(const Kernel::Arguments* arguments) {
  int64_t needed = 0;
  Kernel(*arguments, nullptr, &needed);
  return needed;
}

FLASHRNN_EXPORT void flashrnn_run(const Kernel::Arguments* arguments) {
  Kernel(*arguments, arguments->workspace).run();
}
