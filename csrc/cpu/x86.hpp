// What vector extensions lack on x86-64: fused multiply-adds, masked access, minima as the machine
// has them, stores past the caches. Overloads by type; each exists where its instruction set does.
//
// GCC takes a second to read <immintrin.h>, up to half of a kernel's compilation, so the builtins behind
// those few intrinsics are called here. Other compilers read it, and so does a GCC that has no such
// builtins (runtime/build.py asks it again with FLASHRNN_INTRINSICS).
#pragma once

#include <cstdint>

#if defined(FLASHRNN_INTRINSICS) || defined(__clang__)
#include <immintrin.h>
#else
#define FLASHRNN_GCC_BUILTINS
#endif

namespace flashrnn::x86 {

#define FLASHRNN_X86 inline __attribute__((always_inline))

typedef long long L2 __attribute__((vector_size(16)));
typedef float F8 __attribute__((vector_size(32)));
typedef double D4 __attribute__((vector_size(32)));
typedef int I8 __attribute__((vector_size(32)));
typedef long long L4 __attribute__((vector_size(32)));
typedef char C32 __attribute__((vector_size(32)));
typedef float F16 __attribute__((vector_size(64)));
typedef double D8 __attribute__((vector_size(64)));
typedef int I16 __attribute__((vector_size(64)));
typedef long long L8 __attribute__((vector_size(64)));
typedef short H16 __attribute__((vector_size(32)));

// fma: a * b + c, rounded once. maximum, minimum: the second operand where one is NaN.
// load_first, store_first: the lanes that the mask names, zeros elsewhere. any: a lane is not zero.
// stream: to an address aligned to the vector. widen, narrow: half precision. scale: a * 2^n for whole
// n, rounded once where that is subnormal.

#if defined(FLASHRNN_GCC_BUILTINS)

FLASHRNN_X86 void stream(void* p, L2 v) { __builtin_ia32_movntdq(static_cast<L2*>(p), v); }
FLASHRNN_X86 void fence() { __builtin_ia32_sfence(); }
#if defined(__AVX2__) && defined(__FMA__)
FLASHRNN_X86 F8 fma(F8 a, F8 b, F8 c) { return __builtin_ia32_vfmaddps256(a, b, c); }
FLASHRNN_X86 D4 fma(D4 a, D4 b, D4 c) { return __builtin_ia32_vfmaddpd256(a, b, c); }
FLASHRNN_X86 F8 maximum(F8 a, F8 b) { return __builtin_ia32_maxps256(a, b); }
FLASHRNN_X86 D4 maximum(D4 a, D4 b) { return __builtin_ia32_maxpd256(a, b); }
FLASHRNN_X86 F8 minimum(F8 a, F8 b) { return __builtin_ia32_minps256(a, b); }
FLASHRNN_X86 D4 minimum(D4 a, D4 b) { return __builtin_ia32_minpd256(a, b); }
FLASHRNN_X86 F8 load_first(const float* p, I8 mask) {
  return __builtin_ia32_maskloadps256(reinterpret_cast<const F8*>(p), mask);
}
FLASHRNN_X86 D4 load_first(const double* p, L4 mask) {
  return __builtin_ia32_maskloadpd256(reinterpret_cast<const D4*>(p), mask);
}
FLASHRNN_X86 bool any(C32 v) { return __builtin_ia32_pmovmskb256(v) != 0; }
FLASHRNN_X86 void stream(void* p, L4 v) { __builtin_ia32_movntdq256(static_cast<L4*>(p), v); }
#endif
#if defined(__AVX512F__)
constexpr int rounding_of_now = 4;
FLASHRNN_X86 F16 fma(F16 a, F16 b, F16 c) {
  return __builtin_ia32_vfmaddps512_mask(a, b, c, 0xffff, rounding_of_now);
}
FLASHRNN_X86 D8 fma(D8 a, D8 b, D8 c) {
  return __builtin_ia32_vfmaddpd512_mask(a, b, c, 0xff, rounding_of_now);
}
FLASHRNN_X86 F16 maximum(F16 a, F16 b) {
  return __builtin_ia32_maxps512_mask(a, b, F16{}, 0xffff, rounding_of_now);
}
FLASHRNN_X86 D8 maximum(D8 a, D8 b) {
  return __builtin_ia32_maxpd512_mask(a, b, D8{}, 0xff, rounding_of_now);
}
FLASHRNN_X86 F16 minimum(F16 a, F16 b) {
  return __builtin_ia32_minps512_mask(a, b, F16{}, 0xffff, rounding_of_now);
}
FLASHRNN_X86 D8 minimum(D8 a, D8 b) {
  return __builtin_ia32_minpd512_mask(a, b, D8{}, 0xff, rounding_of_now);
}
FLASHRNN_X86 F16 load_first(const float* p, uint16_t mask) {
  return __builtin_ia32_loadups512_mask(p, F16{}, mask);
}
FLASHRNN_X86 D8 load_first(const double* p, uint8_t mask) {
  return __builtin_ia32_loadupd512_mask(p, D8{}, mask);
}
FLASHRNN_X86 void store_first(float* p, F16 v, uint16_t mask) {
  __builtin_ia32_storeups512_mask(p, v, mask);
}
FLASHRNN_X86 void store_first(double* p, D8 v, uint8_t mask) {
  __builtin_ia32_storeupd512_mask(p, v, mask);
}
FLASHRNN_X86 bool any(I16 v) { return __builtin_ia32_ptestmd512(v, v, 0xffff) != 0; }
FLASHRNN_X86 void stream(void* p, L8 v) { __builtin_ia32_movntdq512(static_cast<L8*>(p), v); }
FLASHRNN_X86 F16 scale(F16 a, F16 n) {
  return __builtin_ia32_scalefps512_mask(a, n, F16{}, 0xffff, rounding_of_now);
}
FLASHRNN_X86 D8 scale(D8 a, D8 n) {
  return __builtin_ia32_scalefpd512_mask(a, n, D8{}, 0xff, rounding_of_now);
}
FLASHRNN_X86 F16 widen(H16 h) {
  return __builtin_ia32_vcvtph2ps512_mask(h, F16{}, 0xffff, rounding_of_now);
}
FLASHRNN_X86 H16 narrow(F16 v) {
  return __builtin_ia32_vcvtps2ph512_mask(v, 0, H16{}, 0xffff);
}
#endif

#else  // the same by intrinsics

FLASHRNN_X86 void stream(void* p, L2 v) { _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v); }
FLASHRNN_X86 void fence() { _mm_sfence(); }
#if defined(__AVX2__) && defined(__FMA__)
FLASHRNN_X86 F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
FLASHRNN_X86 D4 fma(D4 a, D4 b, D4 c) { return _mm256_fmadd_pd(a, b, c); }
FLASHRNN_X86 F8 maximum(F8 a, F8 b) { return _mm256_max_ps(a, b); }
FLASHRNN_X86 D4 maximum(D4 a, D4 b) { return _mm256_max_pd(a, b); }
FLASHRNN_X86 F8 minimum(F8 a, F8 b) { return _mm256_min_ps(a, b); }
FLASHRNN_X86 D4 minimum(D4 a, D4 b) { return _mm256_min_pd(a, b); }
FLASHRNN_X86 F8 load_first(const float* p, I8 mask) { return _mm256_maskload_ps(p, (__m256i)mask); }
FLASHRNN_X86 D4 load_first(const double* p, L4 mask) { return _mm256_maskload_pd(p, (__m256i)mask); }
FLASHRNN_X86 bool any(C32 v) { return _mm256_movemask_epi8((__m256i)v) != 0; }
FLASHRNN_X86 void stream(void* p, L4 v) {
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
}
#endif
#if defined(__AVX512F__)
FLASHRNN_X86 F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
FLASHRNN_X86 D8 fma(D8 a, D8 b, D8 c) { return _mm512_fmadd_pd(a, b, c); }
FLASHRNN_X86 F16 maximum(F16 a, F16 b) { return _mm512_max_ps(a, b); }
FLASHRNN_X86 D8 maximum(D8 a, D8 b) { return _mm512_max_pd(a, b); }
FLASHRNN_X86 F16 minimum(F16 a, F16 b) { return _mm512_min_ps(a, b); }
FLASHRNN_X86 D8 minimum(D8 a, D8 b) { return _mm512_min_pd(a, b); }
FLASHRNN_X86 F16 load_first(const float* p, uint16_t m) { return _mm512_maskz_loadu_ps(m, p); }
FLASHRNN_X86 D8 load_first(const double* p, uint8_t m) { return _mm512_maskz_loadu_pd(m, p); }
FLASHRNN_X86 void store_first(float* p, F16 v, uint16_t m) { _mm512_mask_storeu_ps(p, m, v); }
FLASHRNN_X86 void store_first(double* p, D8 v, uint8_t m) { _mm512_mask_storeu_pd(p, m, v); }
FLASHRNN_X86 bool any(I16 v) { return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0; }
FLASHRNN_X86 void stream(void* p, L8 v) {
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
}
FLASHRNN_X86 F16 scale(F16 a, F16 n) { return _mm512_scalef_ps(a, n); }
FLASHRNN_X86 D8 scale(D8 a, D8 n) { return _mm512_scalef_pd(a, n); }
FLASHRNN_X86 F16 widen(H16 h) { return _mm512_cvtph_ps((__m256i)h); }
FLASHRNN_X86 H16 narrow(F16 v) { return (H16)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
#endif

#endif

#undef FLASHRNN_X86
#undef FLASHRNN_GCC_BUILTINS

}  // namespace flashrnn::x86
