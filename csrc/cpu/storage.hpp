// Numbers in memory: their own type, or 16 bits that are widened on the way in and rounded to the
// nearest even on the way out. Arithmetic never happens in 16 bits.
#pragma once

#include "cpu/simd.hpp"

namespace flashrnn {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// A store that leaves the caches alone, for results that nobody reads before they would have been
// evicted anyway; p is aligned to Bytes. Ends with fence() on the thread that stored.
template <int Bytes, class Vector>
FLASHRNN_INLINE void stream(void* p, Vector v) {
#if defined(__AVX512F__)
  if constexpr (Bytes == 64) return x86::stream(p, (x86::L8)v);
#endif
#if defined(__AVX2__) && defined(__FMA__)
  if constexpr (Bytes == 32) return x86::stream(p, (x86::L4)v);
#endif
#if defined(__x86_64__)
  if constexpr (Bytes == 16) return x86::stream(p, (x86::L2)v);
#endif
  std::memcpy(p, &v, Bytes);
}

FLASHRNN_INLINE void fence() {
#if defined(__x86_64__)
  x86::fence();
#endif
}

template <class I, int Bytes>
struct Integers {
  typedef I Vec __attribute__((vector_size(Bytes)));
};

// Vectors of S::Real that lie in memory as Stored.
template <class S, class Stored>
struct Memory {
  static_assert(sizeof(typename S::Real) == 4 && sizeof(Stored) == 2);
  using Vec = typename S::Vec;
  static constexpr int bytes = 2 * S::lanes;
  using Halves = typename Integers<uint16_t, bytes>::Vec;
  using Words = typename Integers<uint32_t, 2 * bytes>::Vec;

  static FLASHRNN_INLINE Vec load(const Stored* p) {
    Halves h;
    std::memcpy(&h, p, bytes);
    return widen(h);
  }

  static FLASHRNN_INLINE Vec load(const Stored* p, int64_t count) {
    if (__builtin_expect(count >= S::lanes, 1)) return load(p);
    Halves h{};
    for (int64_t i = 0; i < count; ++i) h[i] = p[i].bits;
    return widen(h);
  }

  static FLASHRNN_INLINE void store(Stored* p, Vec v) {
    const Halves h = narrow(v);
    std::memcpy(p, &h, bytes);
  }

  static FLASHRNN_INLINE void store(Stored* p, Vec v, int64_t count) {
    if (__builtin_expect(count >= S::lanes, 1)) return store(p, v);
    const Halves h = narrow(v);
    for (int64_t i = 0; i < count; ++i) p[i].bits = h[i];
  }

  static FLASHRNN_INLINE void stream(Stored* p, Vec v) { flashrnn::stream<bytes>(p, narrow(v)); }

 private:
  static FLASHRNN_INLINE Vec widen(Halves h) {
    const Words w = __builtin_convertvector(h, Words);
    if constexpr (std::is_same_v<Stored, BFloat16>) return (Vec)(w << 16);
#if defined(__AVX512F__)
    if constexpr (S::lanes == 16) return x86::widen((x86::H16)h);
#endif
    // The exponent's bias differs by 112; the product is exact, subnormals included.
    const Vec magnitude = (Vec)((w & 0x7fff) << 13) * S::broadcast(0x1p112f);
    const Words large = (w & 0x7c00) == 0x7c00;  // infinity and NaN
    const Words special = ((w & 0x7fff) << 13) | 0x70000000;
    return (Vec)((large & special) | (~large & (Words)magnitude) | ((w & 0x8000) << 16));
  }

  static FLASHRNN_INLINE Halves narrow(Vec v) {
    const Words w = (Words)v, nan = (Words)(v != v);
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      const Words rounded = w + 0x7fff + ((w >> 16) & 1);
      return __builtin_convertvector(((nan & 0x7fc00000) | (~nan & rounded)) >> 16, Halves);
    }
#if defined(__AVX512F__)
    if constexpr (S::lanes == 16)
      return (Halves)x86::narrow(v);
#endif
    const Words magnitude = w & 0x7fffffff;
    const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // 1/2 has the units of the smallest numbers of 16 bits: the sum rounds to them.
    const Words small = (Words)((Vec)magnitude + S::broadcast(0.5f)) - 0x3f000000;
    const Words is_small = (Words)(magnitude < 0x38800000), is_large = (Words)(magnitude >= 0x47800000);
    Words h = (is_small & small) | (~is_small & normal);
    h = (is_large & 0x7c00) | (~is_large & h);
    h = (nan & 0x7e00) | (~nan & h);
    return __builtin_convertvector(h | ((w >> 16) & 0x8000), Halves);
  }
};

template <class S>
struct Memory<S, typename S::Real> : S {
  static FLASHRNN_INLINE void stream(typename S::Real* p, typename S::Vec v) {
    flashrnn::stream<int(sizeof(typename S::Vec))>(p, v);
  }
};

template <class R, int Bytes>
FLASHRNN_INLINE typename Simd<R, Bytes / 2>::Vec fold_halves(typename Simd<R, Bytes>::Vec v) {
  typename Simd<R, Bytes / 2>::Vec halves[2];
  std::memcpy(halves, &v, Bytes);
  return halves[0] + halves[1];
}

template <class R, int Bytes, int To>
FLASHRNN_INLINE typename Simd<R, To>::Vec fold_to(typename Simd<R, Bytes>::Vec v) {
  if constexpr (Bytes == To) return v;
  else return fold_to<R, Bytes / 2, To>(fold_halves<R, Bytes>(v));
}

// Sums of neighbours at a distance: of a where the bit is clear in the lane's index, of b where set.
template <class S, int distance>
FLASHRNN_INLINE typename S::Vec interleaved(typename S::Vec a, typename S::Vec b) {
  return [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, (I & distance ? I + S::lanes : I)...) +
           __builtin_shufflevector(a, b, ((I ^ distance) + (I & distance ? S::lanes : 0))...);
  }(std::make_integer_sequence<int, S::lanes>{});
}

// The sum of a vector's numbers, always in the same order.
template <class R, int Bytes>
FLASHRNN_INLINE R sum_of(typename Simd<R, Bytes>::Vec v) {
  if constexpr (Bytes == 2 * sizeof(R)) {
    return v[0] + v[1];
  } else {
    return sum_of<R, Bytes / 2>(fold_halves<R, Bytes>(v));
  }
}

// The sums of four vectors, which share their shuffles.
template <class S>
FLASHRNN_INLINE void sums_of_four(const typename S::Vec* v, typename S::Real* to) {
  constexpr int bytes = sizeof(typename S::Vec);
  using R = typename S::Real;
  if constexpr (S::lanes >= 4) {
    const auto both = interleaved<S, 2>(interleaved<S, 1>(v[0], v[1]), interleaved<S, 1>(v[2], v[3]));
    const auto four = fold_to<R, bytes, 4 * int(sizeof(R))>(both);
    std::memcpy(to, &four, sizeof(four));
  } else {
    for (int i = 0; i < 4; ++i) to[i] = sum_of<R, bytes>(v[i]);
  }
}

}  // namespace flashrnn
