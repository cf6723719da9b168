// Transposition through registers: W x W numbers at a time.
#pragma once

#include "cpu/simd.hpp"

namespace flashrnn {

// Of two vectors, lanes of a and b exchanged in blocks of `step`: the low (or high) halves of each
// pair of blocks side by side.
template <class S, int step, bool high>
FLASHRNN_INLINE typename S::Vec exchange(typename S::Vec a, typename S::Vec b) {
  return [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(
        a, b, (I & step ? S::lanes + (I & ~step) + (high ? step : 0) : I + (high ? step : 0))...);
  }(std::make_integer_sequence<int, S::lanes>{});
}

// rows[i][j] -> rows[j][i], by exchanging blocks of half the width, a quarter, ...
template <class S, int step = S::lanes / 2>
FLASHRNN_INLINE void transpose_block(typename S::Vec (&rows)[S::lanes]) {
  if constexpr (step >= 1) {
    unroll<S::lanes>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i & step) == 0) {
        const auto low = exchange<S, step, false>(rows[i], rows[i + step]);
        const auto high = exchange<S, step, true>(rows[i], rows[i + step]);
        rows[i] = low;
        rows[i + step] = high;
      }
    });
    transpose_block<S, step / 2>(rows);
  }
}

// to[j][i] = from[i][j] for i < count, j < length, W columns of `to` at most. Behind count it holds
// zeros up to W, if `padded`, or what it held. Distances count numbers.
template <class S, bool padded>
void transpose(const typename S::Real* from, int64_t from_row, typename S::Real* to, int64_t to_row,
               int64_t count, int64_t length) {
  constexpr int W = S::lanes;
  using Vec = typename S::Vec;
  for (int64_t j = 0; j < length; j += W) {
    const int64_t width = length - j < W ? length - j : W;
    Vec rows[W];
    unroll<W>([&](auto i) __attribute__((always_inline)) {
      rows[i] = i < count ? S::load(from + i * from_row + j, width) : Vec{};
    });
    transpose_block<S>(rows);
    unroll<W>([&](auto i) __attribute__((always_inline)) {
      if (i < width) S::store(to + (j + i) * to_row, rows[i], padded ? W : count);
    });
  }
}

}  // namespace flashrnn
