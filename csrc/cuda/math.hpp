// The functions that an emitted cell calls, for one float32 number per lane.
#pragma once

#include "cuda/target.hpp"

namespace flashrnn {

// What csrc/cpu calls a vector is one number here: each lane of a warp has its own.
struct Lane {
  using Real = float;
  using Vec = float;
  static FLASHRNN_INLINE float broadcast(double x) { return float(x); }
  static FLASHRNN_INLINE float fma(float x, float y, float z) { return fmaf(x, y, z); }
  static FLASHRNN_INLINE float select(bool condition, float x, float y) { return condition ? x : y; }
};

namespace math {

template <class S>
FLASHRNN_INLINE float exp(float x) {
  return fast_exp2(x * 1.44269504088896341f);
}

template <class S>
FLASHRNN_INLINE float sigmoid(float x) {
  return fast_divide(1.0f, 1.0f + exp<S>(-x));
}

// A continued fraction near 0, where 1 - exp(-2x) would cancel.
template <class S>
FLASHRNN_INLINE float tanh(float x) {
  const float e = exp<S>(-2.0f * fabsf(x)), y = x * x;
  const bool near = fabsf(x) < 0.6f;
  const float far = x < 0.0f ? e - 1.0f : 1.0f - e;
  const float numerator = near ? x * fmaf(y, 105.0f + y, 945.0f) : far;
  return fast_divide(numerator, near ? fmaf(y, fmaf(15.0f, y, 420.0f), 945.0f) : 1.0f + e);
}

// The first where they tie; NaN where either is.
template <class S>
FLASHRNN_INLINE float maximum(float x, float y) {
  return x < y || y != y ? y : x;
}

template <class S>
FLASHRNN_INLINE float minimum(float x, float y) {
  return y < x || y != y ? y : x;
}

template <class S>
FLASHRNN_INLINE float log_sigmoid(float x) {
  return minimum<S>(x, 0.0f) - logf(1.0f + exp<S>(-fabsf(x)));
}

}  // namespace math
}  // namespace flashrnn
