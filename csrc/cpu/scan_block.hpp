// The scalars of attention over a prefix, for a block of rows and a group of heads: one pair of
// exponentials per score, whatever the number of channels.
//
// With the running maximum m_i and weights relative to it, the prefix sums within a block are
//   l_i = scale_i l_{i-1} + p_i v_i,   scale_i = e^(m_{i-1} - m_i),   p_i = e^(s_i - m_i),
// and what came before the block joins as e^(m_before - m_i) times its sum. Sums of 64 rows, joined
// into sums that keep what rounding loses, stay exact to a few units in the last place however long
// the sequence is; one running sum does not.
#pragma once

#include <limits>

#include "cpu/scan.hpp"

namespace flashrnn {

constexpr int64_t block_rows = 64;

// e^(a - b) for a <= b; 1 where they are equal, so that nothing minus nothing (-inf) is no change.
template <class S>
FLASHRNN_INLINE typename S::Vec ratio(typename S::Vec a, typename S::Vec b) {
  return math::exp<S>((a == b) ? S::broadcast(0) : a - b);
}

template <class S>
struct Block {
  using Real = typename S::Real;
  using Vec = typename S::Vec;

  int64_t n;  // heads
  // [rows + 1][n]: running maximum, weight of the row, rescaling of the sums before it, factor of
  // what came before the block, 1 / sum of weights (0 for an empty prefix)
  Real *m, *p, *scale, *before, *inverse;
  Real* local;  // [n]: the sum of weights within the block

  Block(Workspace<Real>& memory, int64_t n) : n(n) {
    for (Real** x : {&m, &p, &scale, &before, &inverse})
      *x = memory.take((block_rows + 1) * n + S::lanes);
    local = memory.take(n + S::lanes);
  }

  // Rows [first, first + rows) of the scores, after a prefix with maximum m0 and sum u0.
  template <class Stored>
  void scan(const Rows<const Stored>& scores, int64_t first, int64_t rows, const Real* m0,
            const Real* u0) const {
    for (int64_t j = 0; j < n; j += S::lanes) maxima(scores.shifted(j), first, rows, m0, j);
    const Vec one = S::broadcast(1);
    for (int64_t k = 0; k < rows * n; k += S::lanes) {
      const Vec d = S::load(p + k), e = math::exp<S>((d > 0) ? -d : d);
      S::store(scale + k, (d > 0) ? e : one);
      S::store(p + k, (d > 0) ? one : e);
    }
    for (int64_t j = 0; j < n; j += S::lanes) {
      const int64_t count = n - j;
      const Vec prefix = S::load(u0 + j, count);
      Vec sum{};
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t k = i * n + j;
        sum = S::fma(S::load(scale + k), sum, S::load(p + k));
        const Vec u = S::fma(S::load(before + k), prefix, sum);
        S::store(inverse + k, (u == 0) ? u : one / u, count);
      }
      S::store(local + j, sum);
    }
    for (int64_t j = 0; j < n; ++j) scale[rows * n + j] = 1;
  }

  // `before` becomes the factor from each row's maximum to `after`, which is none of them below.
  void relative_to(const Real* after, int64_t rows) const {
    for (int64_t j = 0; j < n; j += S::lanes) {
      const Vec highest = S::load(after + j);
      Vec factor{}, previous{};
      for (int64_t i = 0; i < rows; ++i) {
        const Vec maximum = S::load(m + i * n + j);
        if (i == 0 || S::differ(maximum, previous)) factor = ratio<S>(maximum, highest);
        S::store(before + i * n + j, factor, n - j);
        previous = maximum;
      }
    }
  }

 private:
  // Running maxima; s - m of the row before for p, not yet an exponential; and the factors of what
  // came before the block.
  template <class Stored>
  void maxima(const Rows<const Stored>& scores, int64_t first, int64_t rows, const Real* m0,
              int64_t j) const {
    const int64_t count = n - j;
    const Vec lowest = S::broadcast(-std::numeric_limits<Real>::infinity());
    const Vec start = S::load(m0 + j, count);
    Vec maximum = start, factor = S::broadcast(1);
    for (int64_t i = 0; i < rows; ++i) {
      const Vec s = Memory<S, Stored>::load(scores[first + i], count), previous = maximum;
      maximum = math::maximum<S>(previous, s);
      // After the first rows few have a new maximum.
      if (S::differ(maximum, previous)) factor = ratio<S>(start, maximum);
      const int64_t k = i * n + j;
      S::store(m + k, maximum, count);
      S::store(p + k, (s == lowest) ? lowest : s - previous, count);
      S::store(before + k, factor, count);
    }
  }
};

}  // namespace flashrnn
