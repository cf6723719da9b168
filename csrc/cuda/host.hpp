// The host's bodies of the primitives: csrc/simt runs the kernel on a CPU, in the order of threads
// that a launch asks for, and reports races, accesses out of bounds and barriers that not all reach.
// Collectives are told apart by the place of their call, which a primitive hands on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt/simt.hpp"

#define FLASHRNN_INLINE inline
#define FLASHRNN_KERNEL(threads) static void
// The last parameter of a primitive, and what it hands on.
#define FLASHRNN_WHERE std::source_location where = std::source_location::current()
#define FLASHRNN_AND_WHERE , FLASHRNN_WHERE

namespace flashrnn {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;

FLASHRNN_INLINE void* shared_memory() { return simt::dynamic_shared(); }
FLASHRNN_INLINE int thread_index() { return int(simt::thread_index().x); }
FLASHRNN_INLINE int block_x() { return int(simt::block_index().x); }
FLASHRNN_INLINE int block_y() { return int(simt::block_index().y); }
FLASHRNN_INLINE int threads_of_block() { return int(simt::block_size().x); }
FLASHRNN_INLINE void block_barrier(FLASHRNN_WHERE) { simt::block_sync(where); }
FLASHRNN_INLINE void warp_barrier(FLASHRNN_WHERE) { simt::warp_sync(~0u, where); }
FLASHRNN_INLINE int unknown(int x) { return x; }
FLASHRNN_INLINE float from_lane(float x, int distance FLASHRNN_AND_WHERE) {
  return simt::shuffle_xor(~0u, x, uint32_t(distance), where);
}

FLASHRNN_INLINE float fast_exp2(float x) { return exp2f(x); }
FLASHRNN_INLINE float fast_divide(float x, float y) { return x / y; }

FLASHRNN_INLINE float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

FLASHRNN_INLINE uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

FLASHRNN_INLINE uint32_t narrow_bfloat16(float x) {
  const uint32_t bits = as_bits(x);
  return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

FLASHRNN_INLINE uint32_t pack_bfloat16(float first, float second) {
  return narrow_bfloat16(first) | narrow_bfloat16(second) << 16;
}

FLASHRNN_INLINE float widen_float16(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return float(x);
}

FLASHRNN_INLINE uint32_t pack_float16(float first, float second) {
  const _Float16 both[2] = {_Float16(first), _Float16(second)};
  uint32_t bits;
  std::memcpy(&bits, both, 4);
  return bits;
}

FLASHRNN_INLINE uint32_t round_tf32(float x) { return simt::to_tf32(x); }

#define FLASHRNN_MMA(name, product)                                                        \
  FLASHRNN_INLINE void name(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]  \
                            FLASHRNN_AND_WHERE) {                                          \
    simt::product(c, a, b, c, where);                                                      \
  }
FLASHRNN_MMA(mma_bfloat16, mma_m16n8k16_bf16)
FLASHRNN_MMA(mma_float16, mma_m16n8k16_f16)
FLASHRNN_MMA(mma_tf32, mma_m16n8k8_tf32)
#undef FLASHRNN_MMA

FLASHRNN_INLINE void add_release(uint32_t* counter, uint32_t n FLASHRNN_AND_WHERE) {
  simt::red_add_release(counter, n, where);
}
FLASHRNN_INLINE uint32_t load_acquire(const uint32_t* counter FLASHRNN_AND_WHERE) {
  return simt::ld_acquire(counter, where);
}

FLASHRNN_INLINE void load_from_l2(const uint32_t (&from)[4], uint32_t (&to)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}

using ClusterAddress = void*;
FLASHRNN_INLINE ClusterAddress in_block(void* own, int rank FLASHRNN_AND_WHERE) {
  return simt::map_shared(static_cast<char*>(own), uint32_t(rank), where);
}
FLASHRNN_INLINE void cluster_barrier(FLASHRNN_WHERE) { simt::cluster_sync(where); }

using ByteBarrier = std::uint64_t;
FLASHRNN_INLINE void begin(ByteBarrier* barrier FLASHRNN_AND_WHERE) {
  simt::mbarrier_init(barrier, 1, where);
  simt::fence_mbarrier_init();
}
FLASHRNN_INLINE void expect(ByteBarrier* barrier, int bytes FLASHRNN_AND_WHERE) {
  simt::mbarrier_arrive_expect_tx(barrier, uint32_t(bytes), where);
}
FLASHRNN_INLINE void wait(ByteBarrier* barrier, int phase FLASHRNN_AND_WHERE) {
  simt::mbarrier_wait(barrier, uint32_t(phase), where);
}
template <int Words>
FLASHRNN_INLINE void store_to(ClusterAddress at, ClusterAddress barrier,
                              const uint32_t (&v)[Words] FLASHRNN_AND_WHERE) {
  struct alignas(4 * Words) Together {
    uint32_t words[Words];
  } together;
  std::memcpy(&together, v, sizeof together);
  simt::st_async(static_cast<Together*>(at), together, static_cast<ByteBarrier*>(barrier), where);
}

}  // namespace flashrnn
