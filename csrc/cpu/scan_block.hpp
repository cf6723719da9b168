// The scalars of attention over a prefix, for a block of rows and a group of heads: one exponential
// per score, whatever the number of channels.
//
// Weights p_i = e^(s_i - r_i) are relative to a reference that follows the running maximum from
// below: r_i = r_{i-1} unless s_i exceeds it by more than `slack`, then r_i = s_i. So p_i <= e^slack,
// the sum of weights is at least 1, and few rows change the scale of what came before them, whose
// sums are multiplied by e^(r_{i-1} - r_i) then. Sums of 64 rows, joined into sums that keep what
// rounding loses, stay exact to a few units in the last place however long the sequence is; one
// running sum does not.
#pragma once

#include <limits>

#include "cpu/scan.hpp"

namespace flashrnn {

constexpr int64_t block_rows = 64;
// Rows of a block as bits.
using RowSet = uint64_t;
static_assert(block_rows <= 8 * sizeof(RowSet));

FLASHRNN_INLINE bool contains(RowSet rows, int64_t i) { return rows >> i & 1; }

// e^4 = 55. A larger one changes scale less often, but differences s - r would lose their last bits.
constexpr int slack = 4;

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
  // [rows][n]: weight; 1 / sum of weights (0 for an empty prefix); e^(r_{i-1} - r_i), where a row
  // changes the scale.
  Real *p, *inverse, *scale;
  // Of each head: the reference behind the first row and behind the last, the highest score so far
  // (each as often as rows share a vector), e^(r before the block - r), weights' sum in the block.
  Real *first, *reference, *top, *factor, *local;

  Block(Workspace<Real>& memory, int64_t n) : n(n) {
    for (Real** x : {&p, &inverse, &scale}) *x = memory.take(block_rows * n + S::lanes);
    for (Real** x : {&first, &reference, &top, &factor, &local}) *x = memory.take(n + S::lanes);
  }

  // After a prefix with maximum m; null for the empty one.
  void begin(const Real* m) const {
    for (int64_t k = 0; k < n + S::lanes; ++k)
      top[k] = m == nullptr ? -std::numeric_limits<Real>::infinity() : m[k % n];
  }

  // Rows [begin, begin + rows) of the scores, after a prefix with reference r0 and sum u0. Says which
  // rows change the scale.
  template <class Stored>
  RowSet scan(const Rows<const Stored>& scores, int64_t begin, int64_t rows, const Real* r0,
              const Real* u0) const {
    const RowSet changes = differences(scores, begin, rows, r0);
    for (int64_t k = 0; k < rows * n; k += S::lanes) S::store(p + k, weight(S::load(p + k)));
    sums(changes, rows, u0);
    const Vec one = S::broadcast(1);
    for (int64_t k = 0; k < rows * n; k += S::lanes) {
      const Vec u = S::load(inverse + k);
      S::store(inverse + k, (u == 0) ? u : one / u);
    }
    return changes;
  }

  // m = the highest score of each head.
  void highest(Real* m) const {
    for (int64_t j = 0; j < n; ++j) {
      Vec most = S::broadcast(top[j]);
      for (int64_t k = j + n; k < shared() * n; k += n)
        most = math::maximum<S>(most, S::broadcast(top[k]));
      m[j] = most[0];
    }
  }

 private:
  // Rows that share a vector, where they lie behind each other.
  int64_t shared() const { return n < S::lanes && S::lanes % n == 0 ? S::lanes / n : 1; }

  // s - r in p, and what `changes` are about.
  template <class Stored>
  RowSet differences(const Rows<const Stored>& scores, int64_t begin, int64_t rows,
                     const Real* r0) const {
    const int64_t together = scores.stride == n ? shared() : 1;
    std::memcpy(first, r0, n * sizeof(Real));
    std::memcpy(reference, r0, n * sizeof(Real));
    RowSet changes = 0;
    int64_t i = 0;
    const auto rows_by = [&](int64_t step) {
      repeat_reference(step);
      for (; i + step <= rows; i += step) {
        if (__builtin_expect(!exceeded(scores[begin + i], i, step), 1)) continue;
        for (int64_t k = i; k < i + step; ++k)
          if (follow(scores[begin + k], k)) changes |= RowSet{1} << k;
        repeat_reference(step);
      }
    };
    if (together > 1) rows_by(together);
    rows_by(1);
    return changes;
  }

  // For each of the rows that share a vector; nothing exceeds what lies behind.
  void repeat_reference(int64_t together) const {
    for (int64_t k = n; k < n + S::lanes; ++k)
      reference[k] = k < together * n ? reference[k - n] : std::numeric_limits<Real>::infinity();
  }

  static FLASHRNN_INLINE Vec difference(Vec s, Vec r) {
    const Vec lowest = S::broadcast(-std::numeric_limits<Real>::infinity());
    return (s == lowest) ? lowest : s - r;
  }

  // e^x; 0 where it is less than the normal numbers.
  static FLASHRNN_INLINE Vec weight(Vec x) {
    const Vec least = S::broadcast(math::Constants<Real>::normal_low);
    return (x < least) ? Vec{} : math::exp_normal<S>(x);
  }

  static FLASHRNN_INLINE Vec exceeds(Vec s, Vec r) {
    return (s > r + S::broadcast(slack)) ? S::broadcast(1) : Vec{};
  }

  // `together` rows, as if none exceeded the reference; true if one does.
  template <class Stored>
  FLASHRNN_INLINE bool exceeded(const Stored* s_, int64_t row, int64_t together) const {
    Vec beyond{};
    for (int64_t j = 0; j < together * n; j += S::lanes) {
      const Vec s = Memory<S, Stored>::load(s_ + j, together * n - j), r = S::load(reference + j);
      beyond += exceeds(s, r);
      S::store(p + row * n + j, difference(s, r));
      S::store(top + j, math::maximum<S>(S::load(top + j), s), together * n - j);
    }
    return S::differ(beyond, Vec{});
  }

  // The reference becomes each score that exceeds it; true if one does.
  template <class Stored>
  __attribute__((noinline)) bool follow(const Stored* s_, int64_t row) const {
    Vec any{};
    for (int64_t j = 0; j < n; j += S::lanes) {
      const Vec s = Memory<S, Stored>::load(s_ + j, n - j), r = S::load(reference + j);
      const Vec beyond = exceeds(s, r), next = (beyond != 0) ? s : r;
      any += beyond;
      S::store(scale + row * n + j, ratio<S>(r, next));
      S::store(p + row * n + j, (beyond != 0) ? Vec{} : difference(s, r));
      S::store(reference + j, next, n - j);
    }
    if (row == 0) std::memcpy(first, reference, n * sizeof(Real));
    return S::differ(any, Vec{});
  }

  // Sums of weights in `inverse`, which are not inverted yet.
  void sums(RowSet changes, int64_t rows, const Real* u0) const {
    for (int64_t j = 0; j < n; j += S::lanes) {
      // A row's store may reach into the next row, unless that is stored already.
      const int64_t count = n <= S::lanes ? S::lanes : n - j;
      Vec before = S::load(u0 + j, n - j), all = S::broadcast(1), sum{};
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t k = i * n + j;
        if (__builtin_expect(contains(changes, i), 0)) {
          const Vec f = S::load(scale + k);
          before *= f, all *= f, sum *= f;
        }
        sum += S::load(p + k);
        S::store(inverse + k, before + sum, count);
      }
      S::store(factor + j, all);
      S::store(local + j, sum);
    }
  }
};

}  // namespace flashrnn
