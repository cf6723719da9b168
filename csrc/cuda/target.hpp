// What differs between a GPU and the host that executes kernels in tests: each primitive has two
// bodies, inline PTX for NVRTC and the simt execution model for a C++ compiler. Schedules use these
// and nothing else of either.
#pragma once

#if defined(__CUDACC__)

#define FLASHRNN_INLINE __forceinline__
#define FLASHRNN_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
// The place of a primitive's call, which only the host asks for.
#define FLASHRNN_WHERE
#define FLASHRNN_AND_WHERE

namespace flashrnn {

using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;

extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];

FLASHRNN_INLINE void* shared_memory() { return dynamic_shared_memory; }
FLASHRNN_INLINE int thread_index() { return threadIdx.x; }
FLASHRNN_INLINE int block_x() { return blockIdx.x; }
FLASHRNN_INLINE int block_y() { return blockIdx.y; }
FLASHRNN_INLINE int threads_of_block() { return blockDim.x; }
FLASHRNN_INLINE void block_barrier() { __syncthreads(); }
FLASHRNN_INLINE void warp_barrier() { __syncwarp(); }
// A number of which the compiler knows nothing, so what follows from it is computed after this.
FLASHRNN_INLINE int unknown(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
FLASHRNN_INLINE float from_lane(float x, int distance) {
  return __shfl_xor_sync(0xffffffffu, x, distance);
}
// To 2 units in the last place of what is 2^x and x / y; without the slow paths of the exact ones,
// which would be in every lane's way in every step.
FLASHRNN_INLINE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FLASHRNN_INLINE float fast_divide(float x, float y) { return __fdividef(x, y); }
FLASHRNN_INLINE float as_float(uint32_t bits) { return __uint_as_float(bits); }

// Two numbers, the first in the lower half, rounded to nearest even.
FLASHRNN_INLINE uint32_t pack_bfloat16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

FLASHRNN_INLINE uint32_t pack_float16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

FLASHRNN_INLINE float widen_float16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

FLASHRNN_INLINE uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// c += a b on a tile of 16 rows and 8 columns; fragments as in the PTX ISA, "Matrix Fragments".
#define FLASHRNN_MMA(name, shape)                                                             \
  FLASHRNN_INLINE void name(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {  \
    asm("mma.sync.aligned." shape                                                             \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                  \
  }
FLASHRNN_MMA(mma_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FLASHRNN_MMA(mma_float16, "m16n8k16.row.col.f32.f16.f16.f32")
FLASHRNN_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FLASHRNN_MMA

// A counter of a grid: whoever reads a value sees what came before the additions to it.
FLASHRNN_INLINE void add_release(uint32_t* counter, uint32_t n) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(n) : "memory");
}
FLASHRNN_INLINE uint32_t load_acquire(const uint32_t* counter) {
  uint32_t n;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
  return n;
}

// In the order of the program, so that loads ahead of their use stay there.
FLASHRNN_INLINE void load_from_l2(const uint32_t (&from)[4], uint32_t (&to)[4]) {
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(&from[0]));
}

// Clusters, sm_90 and later. A place in the shared memory of block `rank` of this one's cluster.
using ClusterAddress = uint32_t;
FLASHRNN_INLINE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
FLASHRNN_INLINE ClusterAddress in_block(const void* own, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there) : "r"(shared_address(own)), "r"(rank));
  return there;
}
FLASHRNN_INLINE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A barrier in shared memory that counts bytes which other blocks store; `phase` alternates.
using ByteBarrier = unsigned long long;
FLASHRNN_INLINE void begin(ByteBarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n"
               "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier)) : "memory");
}
FLASHRNN_INLINE void expect(ByteBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cta.shared::cta.b64 _, [%0], %1;"
               ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
FLASHRNN_INLINE void wait(ByteBarrier* barrier, int phase) {
  asm volatile("{\n.reg .pred done;\n"
               "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}
FLASHRNN_INLINE void store_to(ClusterAddress at, ClusterAddress barrier, const uint32_t (&v)[1]) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               ::"r"(at), "r"(v[0]), "r"(barrier) : "memory");
}
FLASHRNN_INLINE void store_to(ClusterAddress at, ClusterAddress barrier, const uint32_t (&v)[2]) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
               ::"r"(at), "r"(v[0]), "r"(v[1]), "r"(barrier) : "memory");
}
FLASHRNN_INLINE void store_to(ClusterAddress at, ClusterAddress barrier, const uint32_t (&v)[4]) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
      ::"r"(at), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(barrier) : "memory");
}

}  // namespace flashrnn

#else
#include "cuda/host.hpp"
#endif

namespace flashrnn {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int at_least(int a, int least) { return a < least ? least : a; }

}  // namespace flashrnn
