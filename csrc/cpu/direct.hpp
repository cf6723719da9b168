// Products with weights where they lie, for calls too short to pay for packing them.
#pragma once

#include "cpu/transpose.hpp"

namespace flashrnn {

// Rows up to which one time step is faster from weights as they lie: they are read from memory
// once, and for each further row from the first cache.
constexpr int64_t direct_rows = 16;

// The sums of the lanes of each row, row i in lane i; the rows are used up.
template <class S, int step = S::lanes / 2>
FLASHRNN_INLINE typename S::Vec sums_of_lanes(typename S::Vec (&rows)[S::lanes]) {
  if constexpr (step == 0) {
    return rows[0];
  } else {
    unroll<step>([&](auto i) __attribute__((always_inline)) {
      rows[i] = exchange<S, step, false>(rows[i], rows[i + step]) +
                exchange<S, step, true>(rows[i], rows[i + step]);
    });
    return sums_of_lanes<S, step / 2>(rows);
  }
}

// Lane d: the product of x [length] with row d of weights [units, length]; zero behind `units`.
template <class S>
typename S::Vec dot_products(const typename S::Real* weights, int64_t units,
                             const typename S::Real* x, int64_t length) {
  constexpr int W = S::lanes;
  typename S::Vec sum[W] = {};
  if (units >= W) {
    int64_t k = 0;
    for (; k + W <= length; k += W) {
      const auto part = S::load(x + k);
      unroll<W>([&](auto i) __attribute__((always_inline)) {
        sum[i] = S::fma(S::load(weights + i * length + k), part, sum[i]);
      });
    }
    if (k < length) {
      const auto part = S::load(x + k, length - k);
      unroll<W>([&](auto i) __attribute__((always_inline)) {
        sum[i] = S::fma(S::load(weights + i * length + k, length - k), part, sum[i]);
      });
    }
  } else {
    for (int64_t k = 0; k < length; k += W) {
      const auto part = S::load(x + k, length - k);
      unroll<W>([&](auto i) __attribute__((always_inline)) {
        if (i < units) sum[i] = S::fma(S::load(weights + i * length + k, length - k), part, sum[i]);
      });
    }
  }
  return sums_of_lanes<S>(sum);
}

}  // namespace flashrnn
