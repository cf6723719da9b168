// Numbers in memory and on the way into the tensor cores: 16 bits wide, or float32 that the product
// takes rounded to tf32. A `Pair` is two neighbouring units of one row, as they lie in memory.
#pragma once

#include "cuda/target.hpp"

namespace flashrnn {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// k_units: terms of one product instruction.
template <class Storage>
struct Format;

template <>
struct Format<BFloat16> {
  static constexpr int k_units = 16;
  using Pair = uint32_t;
  static FLASHRNN_INLINE Pair pack(float x, float y) { return pack_bfloat16(x, y); }
  static FLASHRNN_INLINE Pair join(BFloat16 x, BFloat16 y) {
    return x.bits | uint32_t(y.bits) << 16;
  }
  static FLASHRNN_INLINE float first(Pair p) { return as_float(p << 16); }
  static FLASHRNN_INLINE float second(Pair p) { return as_float(p & 0xffff0000u); }
  static FLASHRNN_INLINE float widen(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }
  static FLASHRNN_INLINE BFloat16 narrow(float x) { return {uint16_t(pack_bfloat16(x, 0.0f))}; }
  static FLASHRNN_INLINE void multiply(float (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    mma_bfloat16(c, a, b);
  }
};

template <>
struct Format<Float16> {
  static constexpr int k_units = 16;
  using Pair = uint32_t;
  static FLASHRNN_INLINE Pair pack(float x, float y) { return pack_float16(x, y); }
  static FLASHRNN_INLINE Pair join(Float16 x, Float16 y) { return x.bits | uint32_t(y.bits) << 16; }
  static FLASHRNN_INLINE float first(Pair p) { return widen_float16(uint16_t(p)); }
  static FLASHRNN_INLINE float second(Pair p) { return widen_float16(uint16_t(p >> 16)); }
  static FLASHRNN_INLINE float widen(Float16 x) { return widen_float16(x.bits); }
  static FLASHRNN_INLINE Float16 narrow(float x) { return {uint16_t(pack_float16(x, 0.0f))}; }
  static FLASHRNN_INLINE void multiply(float (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    mma_float16(c, a, b);
  }
};

template <>
struct Format<float> {
  static constexpr int k_units = 8;
  struct alignas(8) Pair {
    float x, y;
  };
  static FLASHRNN_INLINE Pair pack(float x, float y) { return {x, y}; }
  static FLASHRNN_INLINE Pair join(float x, float y) { return {x, y}; }
  static FLASHRNN_INLINE float first(Pair p) { return p.x; }
  static FLASHRNN_INLINE float second(Pair p) { return p.y; }
  static FLASHRNN_INLINE float widen(float x) { return x; }
  static FLASHRNN_INLINE float narrow(float x) { return x; }
  static FLASHRNN_INLINE void multiply(float (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
    mma_tf32(c, a, b);
  }
};

// Units `unit` and `unit + 1` of a row of D units that begins at p; zero where the row has none.
template <class Storage, int D>
FLASHRNN_INLINE typename Format<Storage>::Pair load_pair(const Storage* p, int unit, bool inside) {
  using F = Format<Storage>;
  const bool has_first = inside && unit < D;
  if constexpr (D % 2 == 0) {  // both or none, and aligned
    return has_first ? *reinterpret_cast<const typename F::Pair*>(p + unit)
                     : typename F::Pair{};
  } else {
    const bool has_second = inside && unit + 1 < D;
    return F::join(has_first ? p[unit] : Storage{}, has_second ? p[unit + 1] : Storage{});
  }
}

template <class Storage, int D>
FLASHRNN_INLINE void store_pair(Storage* p, int unit, bool inside, float x, float y) {
  using F = Format<Storage>;
  if (!inside || unit >= D) return;
  if constexpr (D % 2 == 0) {
    *reinterpret_cast<typename F::Pair*>(p + unit) = F::pack(x, y);
  } else {
    p[unit] = F::narrow(x);
    if (unit + 1 < D) p[unit + 1] = F::narrow(y);
  }
}

// One unit, or a pair of neighbouring ones, as a lane has them of a row of D units.
template <class Storage, int D, int Count>
struct Few;

template <class Storage, int D>
struct Few<Storage, D, 2> {
  using F = Format<Storage>;
  typename F::Pair pair{};
  static FLASHRNN_INLINE Few load(const Storage* p, int unit, bool inside) {
    return {load_pair<Storage, D>(p, unit, inside)};
  }
  FLASHRNN_INLINE float operator[](int u) const {
    return u == 0 ? F::first(pair) : F::second(pair);
  }
  static FLASHRNN_INLINE void store(Storage* p, int unit, bool inside, const float* x) {
    store_pair<Storage, D>(p, unit, inside, x[0], x[1]);
  }
};

template <class Storage, int D>
struct Few<Storage, D, 1> {
  using F = Format<Storage>;
  Storage one{};
  static FLASHRNN_INLINE Few load(const Storage* p, int unit, bool inside) {
    return {inside && unit < D ? p[unit] : Storage{}};
  }
  FLASHRNN_INLINE float operator[](int) const { return F::widen(one); }
  static FLASHRNN_INLINE void store(Storage* p, int unit, bool inside, const float* x) {
    if (inside && unit < D) p[unit] = F::narrow(x[0]);
  }
};

}  // namespace flashrnn
