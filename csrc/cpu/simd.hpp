// One vector of numbers, whatever its width: GCC's vector extensions carry the arithmetic, and the
// few operations that they lack (fused multiply-add, masked access) are spelled here per ISA.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include "cpu/x86.hpp"
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FLASHRNN_INLINE inline __attribute__((always_inline))
#define FLASHRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace flashrnn {

template <class R, int Bytes>
struct Simd {
  using Real = R;
  using Int = std::conditional_t<sizeof(R) == 4, int32_t, int64_t>;
  static constexpr int lanes = Bytes / sizeof(R);
  typedef R Vec __attribute__((vector_size(Bytes)));
  typedef Int IntVec __attribute__((vector_size(Bytes)));
  // In memory, at any address. To the compiler it shares memory with numbers R alone, as a copy by
  // memcpy would not: what a loop reads of its arguments need not be read again after each store.
  typedef R Somewhere __attribute__((vector_size(Bytes), aligned(sizeof(R))));

  static FLASHRNN_INLINE Vec broadcast(R x) { return x - Vec{}; }

  static FLASHRNN_INLINE Vec load(const R* p) { return *reinterpret_cast<const Somewhere*>(p); }
  static FLASHRNN_INLINE void store(R* p, Vec v) { *reinterpret_cast<Somewhere*>(p) = v; }

  // All bits of the first `count` lanes, none of the others.
  static FLASHRNN_INLINE IntVec first(int64_t count) {
    IntVec lane;
    for (int i = 0; i < lanes; ++i) lane[i] = i;
    return lane < static_cast<Int>(count) - IntVec{};
  }

  // The first `count` numbers at p, zeros behind; reads nothing past them. count >= 1.
  static FLASHRNN_INLINE Vec load(const R* p, int64_t count) {
    if (__builtin_expect(count >= lanes, 1)) return load(p);
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) return x86::load_first(p, (1u << count) - 1);
#endif
#if defined(__AVX2__) && defined(__FMA__)
    if constexpr (Bytes == 32 && sizeof(R) == 4) return x86::load_first(p, (x86::I8)first(count));
    if constexpr (Bytes == 32 && sizeof(R) == 8) return x86::load_first(p, (x86::L4)first(count));
#endif
    Vec v{};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }

  // Writes the first `count` numbers and nothing past them.
  static FLASHRNN_INLINE void store(R* p, Vec v, int64_t count) {
    if (__builtin_expect(count >= lanes, 1)) return store(p, v);
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) return x86::store_first(p, v, (1u << count) - 1);
#endif
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }

  // Whether any lane of a comparison holds.
  static FLASHRNN_INLINE bool any(IntVec d) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) return x86::any((x86::I16)d);
#endif
#if defined(__AVX2__) && defined(__FMA__)
    if constexpr (Bytes == 32) return x86::any((x86::C32)d);
#endif
#if defined(__aarch64__)
    if constexpr (Bytes == 16) return vmaxvq_u32((uint32x4_t)d) != 0;
#endif
    for (int i = 0; i < lanes; ++i)
      if (d[i]) return true;
    return false;
  }

  // The compiler may not load this value again from memory at each of its uses: a machine that
  // loads one vector per cycle would then wait for loads in a loop of multiply-adds.
  static FLASHRNN_INLINE void keep_in_register([[maybe_unused]] Vec& x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
  }

  // low <= x <= high; NaN passes through: x86 returns the second operand then, ARM the NaN.
  static FLASHRNN_INLINE Vec clamp(Vec x, R low, R high) {
    const Vec lo = broadcast(low), hi = broadcast(high);
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) return x86::minimum(hi, x86::maximum(lo, x));
#endif
#if defined(__AVX2__) && defined(__FMA__)
    if constexpr (Bytes == 32) return x86::minimum(hi, x86::maximum(lo, x));
#endif
#if defined(__aarch64__)
    if constexpr (Bytes == 16 && sizeof(R) == 4)
      return (Vec)vminq_f32(vmaxq_f32((float32x4_t)x, (float32x4_t)lo), (float32x4_t)hi);
    if constexpr (Bytes == 16 && sizeof(R) == 8)
      return (Vec)vminq_f64(vmaxq_f64((float64x2_t)x, (float64x2_t)lo), (float64x2_t)hi);
#endif
    x = (x < lo) ? lo : x;
    return (x > hi) ? hi : x;
  }

  // Whether an instruction multiplies by a power of two; then x * 2^n for whole n.
#if defined(__AVX512F__)
  static constexpr bool scales = Bytes == 64;
  static FLASHRNN_INLINE Vec scale(Vec x, Vec n) { return x86::scale(x, n); }
#else
  static constexpr bool scales = false;
#endif

  // a where the condition holds, else b.
  static FLASHRNN_INLINE Vec select(IntVec condition, Vec a, Vec b) { return condition ? a : b; }

  // a * b + c, rounded once where the machine can.
  static FLASHRNN_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) return x86::fma(a, b, c);
#endif
#if defined(__AVX2__) && defined(__FMA__)
    if constexpr (Bytes == 32) return x86::fma(a, b, c);
#endif
#if defined(__aarch64__)
    if constexpr (Bytes == 16 && sizeof(R) == 4)
      return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    if constexpr (Bytes == 16 && sizeof(R) == 8)
      return (Vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#endif
    return a * b + c;
  }
};

// The compiler may not derive this address from others: one register per row of a tile is cheaper
// than arithmetic at each use.
template <class Real>
FLASHRNN_INLINE void keep_address(const Real*& p) {
  asm("" : "+r"(p));
}

// body(0), body(1), …, body(N - 1) with constant indices, so that arrays indexed by them stay in
// registers (GCC spills accumulators that it meets in a loop).
template <int N, class Body>
FLASHRNN_INLINE void unroll(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// body(constant of min(value, Most)), value >= 1.
template <int Most, class Body>
FLASHRNN_INLINE void choose(int64_t value, Body&& body) {
  if constexpr (Most > 1)
    if (value < Most) return choose<Most - 1>(value, body);
  body(std::integral_constant<int, Most>{});
}

// body(0), …, body(count - 1); a body of few operations is repeated, to pay for the loop.
template <int Operations, class Body>
FLASHRNN_INLINE void repeat(int64_t count, Body&& body) {
  constexpr int steps = Operations >= 12 ? 1 : 4;
  int64_t i = 0;
  if constexpr (steps > 1)
    for (; i + steps <= count; i += steps)
      unroll<steps>([&](auto k) __attribute__((always_inline)) { body(i + k); });
  for (; i < count; ++i) body(i);
}

}  // namespace flashrnn
