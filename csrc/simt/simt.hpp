// What a kernel may call when it runs on a CPU; README.md says what each does.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "simt/launch.hpp"

#define SIMT_WHERE std::source_location where = std::source_location::current()

namespace simt {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
Dim3 cluster_size();
uint32_t lane();
uint32_t warp();
uint32_t cluster_rank();
uint32_t cluster_blocks();

namespace bytes {  // the functions behind the templates
void load(void* to, const void* from, uint32_t size, std::source_location where);
void store(void* to, const void* from, uint32_t size, std::source_location where);
void load_atomic(void* to, const void* from, uint32_t size, bool acquire, std::source_location where);
void store_atomic(void* to, const void* from, uint32_t size, bool release,
                  std::source_location where);
// *p becomes change(*p, operand) in one step; `old` is what it was.
void atomic(void* p, uint32_t size, void (*change)(void* value, const void* operand),
            const void* operand, void* old, bool acquire, bool release, std::source_location where);
void* map_shared(void* p, uint32_t rank, std::source_location where);
void shuffle(uint32_t mask, uint32_t (&value)[2], uint32_t source, std::source_location where);
void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row,
              std::source_location where);
void cp_async(void* shared, const void* global, uint32_t size, uint32_t valid,
              std::source_location where);
void cp_async_wait(uint32_t pending, std::source_location where);
void st_async(void* peer, const void* value, uint32_t size, uint64_t* bar,
              std::source_location where);
}  // namespace bytes

void* dynamic_shared();
template <class T>
T* map_shared(T* p, uint32_t rank, SIMT_WHERE) {
  return static_cast<T*>(bytes::map_shared(p, rank, where));
}

template <class T>
T load(const T* p, SIMT_WHERE) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  T value;
  bytes::load(&value, p, sizeof(T), where);
  return value;
}
template <class T>
void store(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  bytes::store(p, &value, sizeof(T), where);
}

void block_sync(SIMT_WHERE);
void block_sync(uint32_t id, uint32_t threads, SIMT_WHERE);
void warp_sync(uint32_t mask = ~0u, SIMT_WHERE);
void grid_sync(SIMT_WHERE);
void cluster_arrive(SIMT_WHERE);
void cluster_wait(SIMT_WHERE);
void cluster_sync(SIMT_WHERE);
void fence_gpu(SIMT_WHERE);

template <class T>
T shuffle(uint32_t mask, T value, uint32_t source, SIMT_WHERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t words[2] = {};
  std::memcpy(words, &value, sizeof(T));
  bytes::shuffle(mask, words, source, where);
  std::memcpy(&value, words, sizeof(T));
  return value;
}
template <class T>
T shuffle_xor(uint32_t mask, T value, uint32_t bits, SIMT_WHERE) {
  return shuffle(mask, value, lane() ^ bits, where);
}
template <class T>
T shuffle_up(uint32_t mask, T value, uint32_t delta, SIMT_WHERE) {
  return shuffle(mask, value, lane() < delta ? lane() : lane() - delta, where);
}
template <class T>
T shuffle_down(uint32_t mask, T value, uint32_t delta, SIMT_WHERE) {
  return shuffle(mask, value, lane() + delta > 31 ? lane() : lane() + delta, where);
}
uint32_t ballot(uint32_t mask, bool predicate, SIMT_WHERE);
bool any(uint32_t mask, bool predicate, SIMT_WHERE);
bool all(uint32_t mask, bool predicate, SIMT_WHERE);

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const float (&c)[4], SIMT_WHERE);
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const float (&c)[4], SIMT_WHERE);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const float (&c)[4], SIMT_WHERE);
uint32_t to_tf32(float x);
template <int Matrices, bool Transposed = false>
void ldmatrix(uint32_t (&r)[Matrices], const void* row, SIMT_WHERE) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4);
  bytes::ldmatrix(r, Matrices, Transposed, row, where);
}

template <int Bytes>
void cp_async(void* shared, const void* global, uint32_t valid, SIMT_WHERE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  bytes::cp_async(shared, global, Bytes, valid, where);
}
template <int Bytes>
void cp_async(void* shared, const void* global, SIMT_WHERE) {
  cp_async<Bytes>(shared, global, Bytes, where);
}
void cp_async_commit();
template <int Pending>
void cp_async_wait(SIMT_WHERE) {
  bytes::cp_async_wait(Pending, where);
}

template <class T>
T change_by_add(T* p, T value, bool acquire, bool release, std::source_location where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  T old;
  const auto add = [](void* sum, const void* operand) {
    *static_cast<T*>(sum) += *static_cast<const T*>(operand);
  };
  bytes::atomic(p, sizeof(T), add, &value, &old, acquire, release, where);
  return old;
}
template <class T>
T atomic_add(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  return change_by_add(p, value, false, false, where);
}
template <class T>
T atomic_add_acq_rel(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  return change_by_add(p, value, true, true, where);
}
template <class T>
void red_add_release(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  change_by_add(p, value, false, true, where);
}
template <class T>
T ld_acquire(const T* p, SIMT_WHERE) {
  T value;
  bytes::load_atomic(&value, p, sizeof(T), true, where);
  return value;
}
template <class T>
T ld_relaxed(const T* p, SIMT_WHERE) {
  T value;
  bytes::load_atomic(&value, p, sizeof(T), false, where);
  return value;
}
template <class T>
void st_release(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  bytes::store_atomic(p, &value, sizeof(T), true, where);
}
template <class T>
void st_relaxed(T* p, std::type_identity_t<T> value, SIMT_WHERE) {
  bytes::store_atomic(p, &value, sizeof(T), false, where);
}

void mbarrier_init(uint64_t* bar, uint32_t count, SIMT_WHERE);
void fence_mbarrier_init();
void mbarrier_arrive(uint64_t* bar, SIMT_WHERE);
void mbarrier_expect_tx(uint64_t* bar, uint32_t size, SIMT_WHERE);
void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t size, SIMT_WHERE);
bool mbarrier_try_wait(uint64_t* bar, uint32_t parity, SIMT_WHERE);
void mbarrier_wait(uint64_t* bar, uint32_t parity, SIMT_WHERE);
template <class T>
void st_async(T* peer, std::type_identity_t<T> value, uint64_t* peer_bar, SIMT_WHERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  bytes::st_async(peer, &value, sizeof(T), peer_bar, where);
}

}  // namespace simt
