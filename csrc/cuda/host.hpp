// The host's bodies of the primitives: a kernel runs on a CPU, one fiber per thread of a block, and
// blocks one after another. A fiber runs until it has to wait, for its block or its warp; then the
// first of the launch's `order` that can run does, so a warp goes as far ahead of the others as the
// barriers let it. A kernel that lacks one reads what is not there yet in one order or another.
// Shared memory starts as NaN. What no order shows is not found: there is no race detector here.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define FLASHRNN_INLINE inline
#define FLASHRNN_KERNEL(threads) static void

namespace flashrnn {

using std::int64_t;
using std::uint16_t;
using std::uint32_t;

namespace host {

constexpr int warp_size = 32, stack_bytes = 256 << 10, most_words = 10;

// Threads that wait for each other.
struct Meeting {
  int members = 0, arrived = 0, phase = 0;
};

struct Warp {
  Meeting meeting;
  // What each lane brings to a collective; of two, since a lane may be in the next one already.
  uint32_t brought[2][warp_size][most_words];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  const Meeting* waits = nullptr;
  int phase = 0;
  bool done = false;
};

struct Block {
  int x, y, current = 0;
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<uint32_t> shared;
  ucontext_t main;
  const std::function<void()>* body;
};

inline Block* block = nullptr;

inline void meet(Meeting& meeting) {
  Fiber& self = block->fibers[block->current];
  self.phase = meeting.phase;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.phase;
    return;
  }
  self.waits = &meeting;
  swapcontext(&self.context, &block->main);
  self.waits = nullptr;
}

inline void start() {
  (*block->body)();
  block->fibers[block->current].done = true;
}

// Orders of the threads: forward, backward, or from the middle outwards by a step.
enum Order { forward, backward, scattered };

inline int in_order(int i, int threads, int order) {
  if (order == backward) return threads - 1 - i;
  return order == scattered ? (i * 37 + 11) % threads : i;  // threads: a multiple of 32
}

inline void run_block(int x, int y, int threads, int shared_bytes, int order,
                      const std::function<void()>& body) {
  Block own;
  own.x = x;
  own.y = y;
  own.body = &body;
  own.meeting.members = threads;
  own.warps.resize(threads / warp_size);
  for (Warp& warp : own.warps) warp.meeting.members = warp_size;
  own.shared.assign((shared_bytes + 3) / 4 + 4, 0xffffffffu);
  own.fibers = std::vector<Fiber>(threads);
  block = &own;
  for (Fiber& fiber : own.fibers) {
    fiber.stack.reset(new char[stack_bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = &own.main;
    makecontext(&fiber.context, start, 0);
  }
  int waiting = 0;
  for (int i = 0; i < threads; ++i) {
    own.current = in_order(i, threads, order);
    Fiber& fiber = own.fibers[own.current];
    if (fiber.done) continue;
    if (fiber.waits != nullptr && fiber.waits->phase == fiber.phase) {
      ++waiting;
      continue;
    }
    swapcontext(&own.main, &fiber.context);
    i = -1;  // from the first one again
    waiting = 0;
  }
  if (waiting > 0) {
    std::fprintf(stderr, "%d threads wait for one that never comes\n", waiting);
    std::abort();
  }
  block = nullptr;
}

// Run `body` as the kernel of a grid.
inline void execute(int blocks_x, int blocks_y, int threads, int shared_bytes, int order,
                    const std::function<void()>& body) {
  for (int y = 0; y < blocks_y; ++y) {
    for (int x = 0; x < blocks_x; ++x) run_block(x, y, threads, shared_bytes, order, body);
  }
}

// What every lane of the warp brings, once all have.
template <int Words>
inline const uint32_t (*gather(const uint32_t (&own)[Words]))[most_words] {
  static_assert(Words <= most_words);
  Warp& warp = block->warps[block->current / warp_size];
  auto& brought = warp.brought[warp.meeting.phase % 2];
  std::memcpy(brought[block->current % warp_size], own, sizeof own);
  meet(warp.meeting);
  return brought;
}

}  // namespace host

FLASHRNN_INLINE void* shared_memory() {
  return reinterpret_cast<void*>(
      (reinterpret_cast<std::uintptr_t>(host::block->shared.data()) + 15) / 16 * 16);
}
FLASHRNN_INLINE int thread_index() { return host::block->current; }
FLASHRNN_INLINE int block_x() { return host::block->x; }
FLASHRNN_INLINE int block_y() { return host::block->y; }
FLASHRNN_INLINE void block_barrier() { host::meet(host::block->meeting); }
FLASHRNN_INLINE void warp_barrier() {
  host::meet(host::block->warps[thread_index() / host::warp_size].meeting);
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

FLASHRNN_INLINE float from_lane(float x, int distance) {
  const uint32_t own[1] = {as_bits(x)};
  return as_float(host::gather(own)[(thread_index() % host::warp_size) ^ distance][0]);
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

// To nearest, ties away from zero; 10 bits of mantissa.
FLASHRNN_INLINE uint32_t round_tf32(float x) {
  return std::isfinite(x) ? (as_bits(x) + 0x1000u) & 0xffffe000u : as_bits(x);
}

namespace host {

// c += a b, by the layouts of the PTX ISA. element(word, i): element i of a fragment's word.
template <int K, class Element>
inline void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     const Element& element) {
  constexpr int per_word = K / 8;  // neighbouring terms in a word
  const uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto* all = gather(own);
  const int lane = thread_index() % warp_size, row = lane / 4, column = lane % 4 * 2;
  for (int e = 0; e < 4; ++e) {
    const int lower = e / 2, n = column + e % 2;
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) {
      const int half = k / (K / 2), q = k % (K / 2) / per_word, i = k % per_word;
      sum += element(all[row * 4 + q][2 * half + lower], i) * element(all[n * 4 + q][4 + half], i);
    }
    c[e] += sum;
  }
}

}  // namespace host

FLASHRNN_INLINE void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply<16>(c, a, b, [](uint32_t word, int i) { return as_float(word >> 16 * i << 16); });
}

FLASHRNN_INLINE void mma_float16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply<16>(c, a, b,
                     [](uint32_t word, int i) { return widen_float16(uint16_t(word >> 16 * i)); });
}

FLASHRNN_INLINE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply<8>(c, a, b, [](uint32_t word, int) { return as_float(word & 0xffffe000u); });
}

}  // namespace flashrnn
