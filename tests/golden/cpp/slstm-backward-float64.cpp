// slstm, backward, float64: generated from the cell's equations.
// Tiling: 4 rows x 16 units in registers.
#include "cpu/backward.hpp"

using Real = double;
constexpr int vector_bytes = 32;
constexpr int b_per_register = 4;
constexpr int d_per_register = 16;

struct Cell {
  // gates: i f z o; states: h c n m
  static constexpr int gates = 4, states = 4;
  static constexpr int weights = 0, saved = 5;
  static constexpr int recurrent = 4, inputs = 4;
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {0, 1, 2, 3};
  static constexpr int input_slot[] = {0, 1, 2, 3};
  static constexpr int recurrent_gate[] = {0, 1, 2, 3};
  static constexpr int input_gate[] = {0, 1, 2, 3};
  // What the derivative reads of the states before and after the step.
  static constexpr bool reads_state[] = {false, true, true, false};
  static constexpr bool reads_next[] = {true, true, true, true};
  // Whether anything is computed for nothing but to be saved.
  static constexpr bool only_saved = true;

  // What is saved for the backward pass: its price (written and read once), and that of doing
  // without, in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void forward(const Vec* gate, [[maybe_unused]] const Vec* state,
                                      [[maybe_unused]] const Vec* weight, Vec* next,
                                      [[maybe_unused]] Vec* save) {
    namespace math = flashrnn::math;
    const Vec x0 = math::sigmoid<S>(gate[3]);
    const Vec x1 = math::log_sigmoid<S>(gate[1]);
    const Vec x2 = x1 + state[3];
    const auto x3 = state[2] == S::broadcast(0.0);
    const Vec x4 = math::tanh<S>(gate[2]);
    const Vec x5 = math::maximum<S>(gate[0], x2);
    const Vec x6 = S::select(x3, gate[0], x5);
    const Vec x7 = x2 - x6;
    const Vec x8 = math::exp<S>(x7);
    const Vec x9 = x8 * state[1];
    const Vec x10 = gate[0] - x6;
    const Vec x11 = math::exp<S>(x10);
    const Vec x12 = S::fma(x11, x4, x9);
    const Vec x13 = S::fma(x8, state[2], x11);
    const Vec x14 = x0 * x12;
    const Vec x15 = math::maximum<S>(x13, S::broadcast(1.0));
    const Vec x16 = x14 / x15;
    const Vec x17 = -gate[1];
    const Vec x18 = math::sigmoid<S>(x17);
    next[0] = x16;
    next[1] = x12;
    next[2] = x15;
    next[3] = x6;
    save[0] = x2;  // log_sigmoid(g.f) + s.m: 16, otherwise 17
    save[1] = gate[0];  // g.i: 16, no other way
    save[2] = x0;  // sigmoid(g.o): 16, otherwise 36
    save[3] = x4;  // tanh(g.z): 16, otherwise 36
    save[4] = x18;  // sigmoid(-g.f): 16, otherwise 36
  }

  // Forward values: 5 are read as saved, for 80; others are recomputed where marked, for 39,
  // in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void backward([[maybe_unused]] const Vec* state,
                                       [[maybe_unused]] const Vec* next,
                                       [[maybe_unused]] const Vec* weight,
                                       [[maybe_unused]] const Vec* save, const Vec* d_next,
                                       Vec* d_gate, Vec* d_state,
                                       [[maybe_unused]] Vec* d_weight) {
    namespace math = flashrnn::math;
    const Vec x0 = d_next[0] / next[2];
    const Vec x1 = S::fma(-x0, next[0], d_next[2]);
    const Vec x2 = S::fma(x0, save[2], d_next[1]);
    const Vec x3 = x0 * next[1];
    const Vec x4 = S::broadcast(1.0) - save[2];  // recomputed: 1
    const Vec x5 = save[2] * x4;  // recomputed: 1
    const Vec x6 = x3 * x5;
    const Vec x7 = save[0] - next[3];  // recomputed: 1
    const Vec x8 = math::exp<S>(x7);  // recomputed: 14
    const Vec x9 = save[1] - next[3];  // recomputed: 1
    const Vec x10 = math::exp<S>(x9);  // recomputed: 14
    const auto x11 = save[1] < save[0];  // recomputed: 1
    const Vec x12 = S::fma(x8, state[2], x10);  // recomputed: 2
    const auto x13 = x12 < S::broadcast(1.0);  // recomputed: 1
    const Vec x14 = S::select(x13, S::broadcast(0.0), x1);
    const Vec x15 = S::fma(x2, save[3], x14);
    const Vec x16 = x15 * x10;
    const Vec x17 = x2 * x10;
    const Vec x18 = S::fma(-save[3], save[3], S::broadcast(1.0));  // recomputed: 2
    const Vec x19 = x17 * x18;
    const Vec x20 = x14 * state[2];
    const Vec x21 = S::fma(x2, state[1], x20);
    const auto x22 = state[2] == S::broadcast(0.0);  // recomputed: 1
    const Vec x23 = d_next[3] - x16;
    const Vec x24 = x21 * x8;
    const Vec x25 = x23 - x24;
    const Vec x26 = S::select(x22, x25, S::broadcast(0.0));
    const Vec x27 = x16 + x26;
    const Vec x28 = S::select(x22, S::broadcast(0.0), x25);
    const Vec x29 = S::select(x11, S::broadcast(0.0), x28);
    const Vec x30 = x27 + x29;
    const Vec x31 = S::select(x11, x28, S::broadcast(0.0));
    const Vec x32 = x24 + x31;
    const Vec x33 = x32 * save[4];
    const Vec x34 = x2 * x8;
    const Vec x35 = x14 * x8;
    d_gate[0] = x30;
    d_gate[1] = x33;
    d_gate[2] = x19;
    d_gate[3] = x6;
    d_state[0] = S::broadcast(0.0);
    d_state[1] = x34;
    d_state[2] = x35;
    d_state[3] = x32;
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
