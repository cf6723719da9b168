// Several vectors as one, for the pointwise part of a cell: one vector waits for its own divisions
// and exponentials, each of which reads the one before it. Sums and products go from vector to
// vector; a function of math.hpp is written out for one vector after another, so that the machine
// finds whole functions that do not wait for each other, and few values wait in registers.
#pragma once

#include "cpu/math.hpp"

namespace flashrnn {

template <class S, int Parts>
struct Several {
  using Real = typename S::Real;
  using One = S;

  // part(constant 0), …, part(constant Parts - 1).
  template <class Values, class Part>
  static FLASHRNN_INLINE Values each(Part&& part) {
    Values values;
    unroll<Parts>([&](auto i) __attribute__((always_inline)) { values.parts[i] = part(i); });
    return values;
  }

  struct IntVec {
    typename S::IntVec parts[Parts];

    friend FLASHRNN_INLINE IntVec operator|(const IntVec& a, const IntVec& b) {
      return each<IntVec>([&](auto i) __attribute__((always_inline)) {
        return a.parts[i] | b.parts[i];
      });
    }
  };

  struct Vec {
    typename S::Vec parts[Parts];

#define FLASHRNN_PARTWISE(Result, op)                                                          \
  friend FLASHRNN_INLINE Result operator op(const Vec& a, const Vec& b) {                      \
    return each<Result>(                                                                       \
        [&](auto i) __attribute__((always_inline)) { return a.parts[i] op b.parts[i]; });      \
  }
    FLASHRNN_PARTWISE(Vec, +)
    FLASHRNN_PARTWISE(Vec, -)
    FLASHRNN_PARTWISE(Vec, *)
    FLASHRNN_PARTWISE(Vec, /)
    FLASHRNN_PARTWISE(IntVec, <)
    FLASHRNN_PARTWISE(IntVec, <=)
    FLASHRNN_PARTWISE(IntVec, ==)
    FLASHRNN_PARTWISE(IntVec, !=)
#undef FLASHRNN_PARTWISE
    friend FLASHRNN_INLINE Vec operator-(const Vec& a) {
      return each<Vec>([&](auto i) __attribute__((always_inline)) { return -a.parts[i]; });
    }
  };

  static FLASHRNN_INLINE Vec broadcast(Real x) {
    return each<Vec>([&](auto) __attribute__((always_inline)) { return S::broadcast(x); });
  }

  static FLASHRNN_INLINE Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each<Vec>([&](auto i) __attribute__((always_inline)) {
      return S::fma(a.parts[i], b.parts[i], c.parts[i]);
    });
  }

  static FLASHRNN_INLINE Vec select(const IntVec& condition, const Vec& a, const Vec& b) {
    return each<Vec>([&](auto i) __attribute__((always_inline)) {
      return S::select(condition.parts[i], a.parts[i], b.parts[i]);
    });
  }
};

namespace math {

#define FLASHRNN_PART_BY_PART(function)                                          \
  template <class S>                                                             \
    requires(!Single<S>)                                                         \
  FLASHRNN_INLINE typename S::Vec function(typename S::Vec x) {                  \
    return S::template each<typename S::Vec>([&](auto i)                         \
                                                 __attribute__((always_inline)) { \
      return function<typename S::One>(x.parts[i]);                              \
    });                                                                          \
  }
FLASHRNN_PART_BY_PART(exp)
FLASHRNN_PART_BY_PART(sigmoid)
FLASHRNN_PART_BY_PART(tanh)
FLASHRNN_PART_BY_PART(log_sigmoid)
#undef FLASHRNN_PART_BY_PART

}  // namespace math
}  // namespace flashrnn
