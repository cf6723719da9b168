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
      top[k] = m == nullptr ? lowest : m[k % n];
  }

  // Rows [begin, begin + rows) of the scores, after a prefix with reference r0 and sum u0. Says which
  // rows change the scale.
  template <class Stored>
  RowSet scan(const Rows<const Stored>& scores, int64_t begin, int64_t rows, const Real* r0,
              const Real* u0) const {
    std::memcpy(first, r0, n * sizeof(Real));
    std::memcpy(reference, r0, n * sizeof(Real));
    const Rows<const Stored> block{scores[begin], scores.stride};
    RowSet changes = 0;
    if (scores.stride == n && shared() > 1) {
      differences(block, rows, changes);
      for (int64_t k = 0; k < rows * n; k += S::lanes) S::store(p + k, weight(S::load(p + k)));
      sums(changes, rows, u0);
      for (int64_t k = 0; k < rows * n; k += S::lanes)
        S::store(inverse + k, inverted(S::load(inverse + k)));
    } else {
      // What a row's last vector writes behind the row is written again, with the first ones.
      if (n % S::lanes != 0) heads<false>(block, rows, u0, n / S::lanes * S::lanes, changes);
      for (int64_t j = 0; j + S::lanes <= n; j += S::lanes)
        heads<true>(block, rows, u0, j, changes);
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

  // Of a vector of heads: the reference, the sums of weights before the block and in it, and the product
  // of what changed their scale.
  struct Running {
    Vec r, before, sum, all;
  };

  // A vector of heads from j on, or what is left of one; its sums stay in registers from row to row.
  template <bool Whole, class Stored>
  void heads(const Rows<const Stored>& scores, int64_t rows, const Real* u0, int64_t j,
             RowSet& changes) const {
    const int64_t count = n - j;
    Running now{S::load(reference + j, count), S::load(u0 + j, count), Vec{}, S::broadcast(1)};
    Vec most = S::load(top + j, count);
    const auto score = [&](int64_t i) __attribute__((always_inline)) {
      if constexpr (Whole) return Memory<S, Stored>::load(scores[i] + j);
      else return Memory<S, Stored>::load(scores[i] + j, count);
    };
    int64_t i = 0;
    const auto until_change = [&]() __attribute__((always_inline)) {
      const int64_t per_row = n;
      Real *weights = p + i * n + j, *inverses = inverse + i * n + j;
      // So that a masked score behind masked scores alone is no NaN.
      const Vec r = (now.r == S::broadcast(lowest)) ? Vec{} : now.r;
      const Vec before = now.before, limit = now.r + S::broadcast(slack);
      Vec sum = now.sum;
      for (; i < rows; ++i, weights += per_row, inverses += per_row) {
        const Vec s = score(i);
        if (__builtin_expect(S::any(s > limit), 0)) break;
        const Vec x = weight(s - r);
        most = math::maximum<S>(most, s);
        sum += x;
        S::store(weights, x);
        S::store(inverses, inverted(before + sum));
      }
      now.sum = sum;
    };
    for (until_change(); i < rows; until_change())
      follow(score(i), i, j, now, changes);
    S::store(top + j, most, count);
    S::store(reference + j, now.r, count);
    S::store(factor + j, now.all);
    S::store(local + j, now.sum);
  }

  // The reference becomes each score that exceeds it, in row i, for a vector of heads from j on.
  __attribute__((noinline)) void follow(Vec s, int64_t i, int64_t j, Running& now,
                                        RowSet& changes) const {
    if (!contains(changes, i))
      for (int64_t k = 0; k < n; ++k) scale[i * n + k] = 1;
    changes |= RowSet{1} << i;
    const Vec next = (s > now.r + S::broadcast(slack)) ? s : now.r, f = ratio<S>(now.r, next);
    S::store(scale + i * n + j, f, n - j);
    if (i == 0) S::store(first + j, next, n - j);
    now = {next, now.before * f, now.sum * f, now.all * f};
  }

  // Where several rows share a vector: s - r in p, and what `changes` are about.
  template <class Stored>
  void differences(const Rows<const Stored>& scores, int64_t rows, RowSet& changes) const {
    const auto difference = [](Vec s, Vec r) {
      const Vec masked = S::broadcast(lowest);
      return (s == masked) ? masked : s - r;
    };
    int64_t i = 0;
    const auto rows_by = [&](int64_t step) {
      repeat_reference(step);
      Vec r = S::load(reference), most = S::load(top);
      for (; i + step <= rows; i += step) {
        const Vec s = Memory<S, Stored>::load(scores[i], step * n);
        most = math::maximum<S>(most, s);
        S::store(p + i * n, difference(s, r));
        if (__builtin_expect(!S::any(s > r + S::broadcast(slack)), 1)) continue;
        for (int64_t k = i; k < i + step; ++k) {
          const Vec own = Memory<S, Stored>::load(scores[k], n);
          Running now{S::load(reference, n), {}, {}, {}};
          if (S::any(own > now.r + S::broadcast(slack))) follow(own, k, 0, now, changes);
          S::store(p + k * n, difference(own, now.r));
          S::store(reference, now.r, n);
        }
        repeat_reference(step);
        r = S::load(reference);
      }
      S::store(top, most, step * n);
    };
    rows_by(shared());
    rows_by(1);
  }

  // For each of the rows that share a vector; nothing exceeds what lies behind.
  void repeat_reference(int64_t together) const {
    for (int64_t k = n; k < n + S::lanes; ++k)
      reference[k] = k < together * n ? reference[k - n] : -lowest;
  }

  // Where several rows share a vector: sums of weights in `inverse`, which are not inverted yet. A
  // row's store reaches into the next rows, which are stored later.
  void sums(RowSet changes, int64_t rows, const Real* u0) const {
    Vec before = S::load(u0, n), all = S::broadcast(1), sum{};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t k = i * n;
      if (__builtin_expect(contains(changes, i), 0)) {
        const Vec f = S::load(scale + k);
        before *= f, all *= f, sum *= f;
      }
      sum += S::load(p + k);
      S::store(inverse + k, before + sum);
    }
    S::store(factor, all);
    S::store(local, sum);
  }

  // e^x, x at most `slack` or NaN; 0 where it is less than the normal numbers.
  static FLASHRNN_INLINE Vec weight(Vec x) {
    const Vec least = S::broadcast(math::Constants<Real>::normal_low);
    return (x < least) ? Vec{} : math::exp_within<S>(x);
  }

  // 0 for 0
  static FLASHRNN_INLINE Vec inverted(Vec u) {
    return (Vec)((typename S::IntVec)(S::broadcast(1) / u) & (u != 0));
  }

  static constexpr Real lowest = -std::numeric_limits<Real>::infinity();
};

}  // namespace flashrnn
