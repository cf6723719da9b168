// Transcendental functions on vectors. No -ffast-math: every division is exact, subnormals live.
//
// All rest on expm1(x) = 2^n (e^r - 1) + (2^n - 1), n = round(x / ln 2), r = x - n ln 2, with
// e^r - 1 = r + r^2 q(r) and q a Chebyshev fit on |r| <= ln 2 / 2 (relative error of the fit:
// 2.3e-8 in float32, 3.7e-17 in float64). Error bounds, in units of the last place, as the tests
// measure them: exp 2, sigmoid 3, tanh 4, log_sigmoid 4. NaN stays NaN.
#pragma once

#include "cpu/simd.hpp"

namespace flashrnn::math {

// What the reduction needs, per type.
template <class R>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: x + magic rounds x to an integer
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860682e-6f;
  static constexpr float exp_low = -104.0f, exp_high = 89.0f;         // 0 and infinity beyond
  static constexpr float normal_low = -87.0f, normal_high = 88.0f;    // 2^n is a normal number
  static constexpr float tanh_limit = 9.1f;                           // tanh rounds to 1 beyond
  static constexpr float q[] = {0.5f,          0.166665770f,   0.0416665546f,
                                0.00836317905f, 0.00139261836f};
  static constexpr float atanh[] = {0.333333337f, 0.199998532f, 0.142961790f, 0.108532879f,
                                    0.116121646f};
};

template <>
struct Constants<double> {
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_low = -746.0, exp_high = 710.0;
  static constexpr double normal_low = -708.0, normal_high = 709.0;
  static constexpr double tanh_limit = 19.1;
  static constexpr double q[] = {
      0.500000000000000102,  0.166666666666666675,  0.0416666666666241279, 0.00833333333333006183,
      0.00138888889172137169, 0.000198412698630536169, 0.0000248015212959543751,
      2.75572684599970648e-6, 2.76200884454097482e-7, 2.51003854955103191e-8};
  static constexpr double atanh[] = {
      0.333333333333333334,  0.199999999999997613,  0.142857142858000496,  0.111111110991183853,
      0.0909090994898135719, 0.0769227198243027464, 0.0666758931572462792, 0.0586713953065159873,
      0.0542258919744000741, 0.0374607189777538365, 0.0781528890046142522};
};

// Not several vectors, of which cpu/several.hpp takes these functions one by one.
template <class S>
concept Single = !requires { typename S::One; };

template <class S, int N>
FLASHRNN_INLINE typename S::Vec polynomial(typename S::Vec x, const typename S::Real (&c)[N]) {
  typename S::Vec y = S::broadcast(c[N - 1]);
  unroll<N - 1>([&](auto i) __attribute__((always_inline)) {
    y = S::fma(y, x, S::broadcast(c[N - 2 - i]));
  });
  return y;
}

template <class S>
FLASHRNN_INLINE typename S::Vec maximum(typename S::Vec a, typename S::Vec b) {
  return S::select((a < b) | (b != b), b, a);
}

template <class S>
FLASHRNN_INLINE typename S::Vec minimum(typename S::Vec a, typename S::Vec b) {
  return S::select((b < a) | (b != b), b, a);
}

// x = n ln 2 + r: e^r - 1, and n as it is rounded to and as an integer.
template <class S>
struct Reduced {
  typename S::Vec expm1_r, rounded;
  typename S::IntVec n;
};

template <class S>
FLASHRNN_INLINE Reduced<S> reduce(typename S::Vec x) {
  using K = Constants<typename S::Real>;
  const auto magic = S::broadcast(K::magic);
  const auto shifted = S::fma(x, S::broadcast((typename S::Real)1.44269504088896340736), magic);
  const auto rounded = shifted - magic;
  auto r = S::fma(rounded, S::broadcast(-K::ln2_high), x);
  r = S::fma(rounded, S::broadcast(-K::ln2_low), r);
  const auto q = polynomial<S>(r, K::q);
  return {S::fma(r * r, q, r), rounded, (typename S::IntVec)shifted - (typename S::IntVec)magic};
}

// 2^n for n within the exponents of normal numbers.
template <class S>
FLASHRNN_INLINE typename S::Vec power_of_two(typename S::IntVec n) {
  using K = Constants<typename S::Real>;
  return (typename S::Vec)((n + K::bias) << K::mantissa);
}

template <Single S>
FLASHRNN_INLINE typename S::Vec exp(typename S::Vec x) {
  using K = Constants<typename S::Real>;
  const auto reduced = reduce<S>(S::clamp(x, K::exp_low, K::exp_high));
  if constexpr (S::scales) return S::scale(reduced.expm1_r + S::broadcast(1), reduced.rounded);
  // in two factors, so that results down to the smallest subnormal come out right
  const auto half = reduced.n >> 1;
  const auto scale = power_of_two<S>(half);
  return S::fma(scale, reduced.expm1_r, scale) * power_of_two<S>(reduced.n - half);
}

// e^x where it is a normal number, anything elsewhere.
template <class S>
FLASHRNN_INLINE typename S::Vec exp_within(typename S::Vec x) {
  const auto reduced = reduce<S>(x);
  const auto scale = power_of_two<S>(reduced.n);
  return S::fma(scale, reduced.expm1_r, scale);
}

// e^x where it is a normal number; the nearest normal number beyond.
template <class S>
FLASHRNN_INLINE typename S::Vec exp_normal(typename S::Vec x) {
  using K = Constants<typename S::Real>;
  return exp_within<S>(S::clamp(x, K::normal_low, K::normal_high));
}

template <Single S>
FLASHRNN_INLINE typename S::Vec sigmoid(typename S::Vec x) {
  const auto one = S::broadcast(1);
  return one / (one + exp_normal<S>(-x));
}

template <Single S>
FLASHRNN_INLINE typename S::Vec tanh(typename S::Vec x) {
  using K = Constants<typename S::Real>;
  const auto one = S::broadcast(1);
  const auto reduced = reduce<S>(S::clamp(x + x, -2 * K::tanh_limit, 2 * K::tanh_limit));
  const auto scale = power_of_two<S>(reduced.n);
  const auto expm1 = S::fma(scale, reduced.expm1_r, scale - one);
  return expm1 / (expm1 + S::broadcast(2));
}

// log(sigmoid(x)) = min(x, 0) - log1p(e^-|x|), and log1p(y) = 2 atanh(y / (2 + y)).
template <Single S>
FLASHRNN_INLINE typename S::Vec log_sigmoid(typename S::Vec x) {
  using K = Constants<typename S::Real>;
  const auto zero = S::broadcast(0);
  const auto negative = (x > zero) ? -x : x;  // NaN stays
  const auto y = exp<S>(negative);
  const auto s = y / (y + S::broadcast(2));
  const auto z = s * s;
  const auto twice = s + s;
  const auto log1p = S::fma(twice * z, polynomial<S>(z, K::atanh), twice);
  return ((x > zero) ? zero : x) - log1p;
}

}  // namespace flashrnn::math
