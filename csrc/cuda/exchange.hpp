// How the blocks that share a head hand each other their parts of an operand, once per step of a tile
// of rows. Two slots take turns: who writes to one has seen the operand behind it complete, and no
// block adds to that before its product with the one before, which lay in the same slot, is done.
#pragma once

#include "cuda/product.hpp"

namespace flashrnn {

// A schedule's Arguments where a head is spread over blocks. Fields of 8 bytes, as theirs.
template <class Arguments>
struct Exchanging : Arguments {
  Operand* exchange;  // [groups of blocks, tiles, 2, k tiles, 32], zeros; or null in a cluster
  uint32_t* arrived;  // [groups of blocks, tiles, 32], zeros; or null in a cluster
  int64_t first;      // of the heads times tiles in flight, which groups of blocks take in order
};

template <int Words>
struct alignas(4 * Words) Together {
  uint32_t words[Words];
};

// Through global memory: a counter says how many blocks have stored their parts. The slots and
// counters begin as zeros. Every block of the launch is resident at once.
template <int Operands, int Blocks>
struct GridExchange {
  static constexpr int shared_bytes = 0;
  static constexpr int slot = Operands * lanes, counter_spacing = 32;
  static constexpr int ahead = 6;  // operands on their way from L2 to a warp, at 4 registers
  Operand* slots;
  uint32_t* arrived;
  uint32_t published = 0;

  // number: of all tiles of the launch.
  template <class Arguments>
  FLASHRNN_INLINE GridExchange(const Arguments& a, int number, void*, int)
      : slots(a.exchange + number * 2 * slot), arrived(a.arrived + number * counter_spacing) {}

  FLASHRNN_INLINE void start() {}
  static FLASHRNN_INLINE void all_started() {}

  template <int Words>
  FLASHRNN_INLINE void put(int at, int word, const Together<Words>& v) {
    uint32_t* to = slots[published % 2 * slot + at].words + word;
    *reinterpret_cast<Together<Words>*>(to) = v;
  }

  FLASHRNN_INLINE void publish() {
    block_barrier();
    if (thread_index() == 0) add_release(arrived, 1);
    ++published;
  }

  static FLASHRNN_INLINE Operand load(const Operand* p) {
    Operand x;
    load_from_l2(p->words, x.words);
    return x;
  }

  // The operand that was published last, of all blocks.
  FLASHRNN_INLINE const Operand* complete(const Place& place) {
    if (place.lane == 0) {
      while (int(load_acquire(arrived) - published * Blocks) < 0) {
      }
    }
    warp_barrier();
    return slots + (published - 1) % 2 * slot;
  }
};

// Within a cluster, through the shared memory of each block, whose barriers count the bytes: no
// block waits for a fence.
template <int Operands, int Blocks>
struct ClusterExchange {
  static constexpr int slot = Operands * lanes, slot_bytes = slot * int(sizeof(Operand));
  static constexpr int shared_bytes = 2 * slot_bytes + 2 * int(sizeof(ByteBarrier));
  static constexpr int ahead = 0;
  Operand* slots;
  ByteBarrier* full;
  int bytes;  // of all parts
  uint32_t published = 0;

  template <class Arguments>
  FLASHRNN_INLINE ClusterExchange(const Arguments&, int, void* shared, int bytes_of_parts)
      : slots(static_cast<Operand*>(shared)), full(reinterpret_cast<ByteBarrier*>(slots + 2 * slot)),
        bytes(bytes_of_parts) {}

  FLASHRNN_INLINE void start() {
    for (int i = thread_index(); i < 2 * slot; i += threads_of_block())
      slots[i] = Operand{{0, 0, 0, 0}};
    if (thread_index() == 0) {
      begin(full);
      begin(full + 1);
    }
  }
  static FLASHRNN_INLINE void all_started() { cluster_barrier(); }

  template <int Words>
  FLASHRNN_INLINE void put(int at, int word, const Together<Words>& v) {
    uint32_t* to = slots[published % 2 * slot + at].words + word;
#pragma unroll
    for (int rank = 0; rank < Blocks; ++rank)
      store_to(in_block(to, rank), in_block(full + published % 2, rank), v.words);
  }

  FLASHRNN_INLINE void publish() {
    if (thread_index() == 0) expect(full + published % 2, bytes);
    ++published;
  }

  static FLASHRNN_INLINE Operand load(const Operand* p) { return *p; }

  FLASHRNN_INLINE const Operand* complete(const Place&) {
    const uint32_t last = published - 1;
    wait(full + last % 2, int(last / 2 % 2));
    return slots + last % 2 * slot;
  }
};

}  // namespace flashrnn
