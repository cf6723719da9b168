// indrnn, forward, float64: generated from the cell's equations.
// Tiling: 4 rows x 16 units in registers.
#include "cpu/forward.hpp"

using Real = double;
constexpr int vector_bytes = 32;
constexpr int b_per_register = 4;
constexpr int d_per_register = 16;

struct Cell {
  // gates: z; states: h; weights: R.z
  static constexpr int gates = 1, states = 1;
  static constexpr int weights = 1, saved = 1;
  static constexpr int recurrent = 0, inputs = 1;
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {-1};
  static constexpr int input_slot[] = {0};
  static constexpr int recurrent_gate[] = {-1};
  static constexpr int input_gate[] = {0};
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
    const Vec x0 = S::fma(weight[0], state[0], gate[0]);
    const Vec x1 = math::maximum<S>(x0, S::broadcast(0.0));
    next[0] = x1;
    save[0] = x0;  // g.z + R.z * s.h: 16, otherwise 18
  }

  // Forward values: 1 are read as saved, for 16; others are recomputed where marked, for 1,
  // in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void backward([[maybe_unused]] const Vec* state,
                                       [[maybe_unused]] const Vec* next,
                                       [[maybe_unused]] const Vec* weight,
                                       [[maybe_unused]] const Vec* save, const Vec* d_next,
                                       Vec* d_gate, Vec* d_state,
                                       [[maybe_unused]] Vec* d_weight) {
    namespace math = flashrnn::math;
    const auto x0 = save[0] < S::broadcast(0.0);  // recomputed: 1
    const Vec x1 = S::select(x0, S::broadcast(0.0), d_next[0]);
    const Vec x2 = x1 * weight[0];
    const Vec x3 = x1 * state[0];
    d_gate[0] = x1;
    d_state[0] = x2;
    d_weight[0] = x3;
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
