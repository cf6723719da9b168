// Warp collectives: the lanes of a mask meet, and the last one computes for all.
#include <bit>

#include "simt/machine.hpp"

namespace simt {

namespace {

enum Operation { sync, shuffled, vote, multiply_bf16, multiply_f16, multiply_tf32, matrices };

// The meeting of these lanes, new if this one is the first.
Rendezvous& meeting_of(Warp& warp, Operation operation, uint32_t mask, const char* what, Place at) {
  for (Rendezvous& meeting : warp.open) {
    if ((meeting.mask & mask) == 0) continue;
    if (meeting.mask != mask) {
      fail("divergence", name_of(self()) + " is in " + what + ", " + at.text() +
                             ", while lanes of its mask are in a collective of another mask, " +
                             meeting.first.text());
    }
    if (meeting.operation != operation || !(meeting.first == at)) {
      fail("divergence", name_of(self()) + " is in " + what + ", " + at.text() +
                             ", and other lanes of its mask in a collective at " +
                             meeting.first.text());
    }
    return meeting;
  }
  return warp.open.emplace_back(Rendezvous{mask, 0, operation, at});
}

template <class Compute>
void together(Operation operation, uint32_t mask, const char* what, Place at, Compute compute) {
  Thread& thread = self();
  Warp& warp = *thread.warp;
  if (!(mask >> thread.lane & 1)) {
    fail("collective", name_of(thread) + " is not in its own mask in " + what + ", " + at.text());
  }
  if ((mask & warp.alive) != mask) {
    fail("exited", name_of(thread) + " names lanes in " + std::string(what) + ", " + at.text() +
                       ", that have ended");
  }
  Rendezvous& meeting = meeting_of(warp, operation, mask, what, at);
  meeting.arrived |= 1u << thread.lane;
  if (meeting.arrived != mask) {
    const uint64_t& phase = warp.phase[thread.lane];
    return wait_while(phase, phase, what, at);
  }
  meeting = warp.open.back();
  warp.open.pop_back();
  compute(warp);
  ++machine->progress;
  for (uint32_t i = 0; i < 32; ++i) {
    if (mask >> i & 1) ++warp.phase[i];
  }
}

uint32_t* brought() { return self().warp->brought[self().lane]; }
uint32_t* result() { return self().warp->result[self().lane]; }

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

float from_f16(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023, sign = uint32_t(bits >> 15) << 31;
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t e = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | e << 23 | mantissa << 13);
}

// The hardware reads the upper 19 bits of an operand.
float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

uint16_t half_of(uint32_t word, int i) { return uint16_t(word >> (16 * i)); }

struct Tile {
  float a[16][16], b[16][8];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "mma.m16n8k8" (tf32).
void gather(const Warp& warp, Operation operation, Tile& tile) {
  const auto widen = operation == multiply_bf16 ? from_bf16 : from_f16;
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t *a = warp.brought[lane], *b = a + 4;
    const int group = lane / 4, in_group = lane % 4;
    if (operation == multiply_tf32) {
      for (int i = 0; i < 4; ++i) {
        tile.a[group + i % 2 * 8][in_group + i / 2 * 4] = from_tf32(a[i]);
      }
      for (int i = 0; i < 2; ++i) tile.b[in_group + i * 4][group] = from_tf32(b[i]);
      continue;
    }
    for (int i = 0; i < 8; ++i) {
      tile.a[group + i / 2 % 2 * 8][in_group * 2 + i % 2 + i / 4 * 8] = widen(half_of(a[i / 2], i % 2));
    }
    for (int i = 0; i < 4; ++i) {
      tile.b[in_group * 2 + i % 2 + i / 2 * 8][group] = widen(half_of(b[i / 2], i % 2));
    }
  }
}

void multiply(Warp& warp, Operation operation) {
  Tile tile;
  gather(warp, operation, tile);
  const int terms = operation == multiply_tf32 ? 8 : 16;
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < terms; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += tile.a[row][k] * tile.b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const float c = std::bit_cast<float>(warp.brought[lane][6 + i]);
      const float d = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] + c;
      warp.result[lane][i] = std::bit_cast<uint32_t>(d);
    }
  }
}

void mma(Operation operation, const char* what, float (&d)[4], const uint32_t (&a)[4],
         const uint32_t (&b)[2], const float (&c)[4], Place at) {
  uint32_t* own = brought();
  std::memcpy(own, a, sizeof a);
  std::memcpy(own + 4, b, sizeof b);
  std::memcpy(own + 6, c, sizeof c);
  together(operation, ~0u, what, at, [operation](Warp& warp) { multiply(warp, operation); });
  std::memcpy(d, result(), sizeof d);
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       const float (&c)[4], std::source_location where) {
  mma(multiply_bf16, "mma_m16n8k16_bf16", d, a, b, c, where);
}
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const float (&c)[4], std::source_location where) {
  mma(multiply_f16, "mma_m16n8k16_f16", d, a, b, c, where);
}
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      const float (&c)[4], std::source_location where) {
  mma(multiply_tf32, "mma_m16n8k8_tf32", d, a, b, c, where);
}

uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;  // to nearest, ties away from zero
}

void warp_sync(uint32_t mask, std::source_location where) {
  together(sync, mask, "warp_sync", where, [mask](Warp& warp) {
    std::vector<Thread*> lanes;
    for (uint32_t i = 0; i < 32; ++i) {
      if (mask >> i & 1) lanes.push_back(warp.lanes[i]);
    }
    meet(lanes);
  });
}

uint32_t ballot(uint32_t mask, bool predicate, std::source_location where) {
  brought()[0] = predicate;
  together(vote, mask, "a vote", where, [mask](Warp& warp) {
    uint32_t votes = 0;
    for (uint32_t i = 0; i < 32; ++i) votes |= (mask >> i & 1 & warp.brought[i][0]) << i;
    for (uint32_t i = 0; i < 32; ++i) {
      if (mask >> i & 1) warp.result[i][0] = votes;
    }
  });
  return result()[0];
}

bool any(uint32_t mask, bool predicate, std::source_location where) {
  return ballot(mask, predicate, where) != 0;
}
bool all(uint32_t mask, bool predicate, std::source_location where) {
  return ballot(mask, predicate, where) == mask;
}

namespace bytes {

void shuffle(uint32_t mask, uint32_t (&value)[2], uint32_t source, std::source_location where) {
  uint32_t* own = brought();
  own[0] = value[0];
  own[1] = value[1];
  source %= 32;
  if (!(mask >> source & 1)) {
    fail("collective", name_of(self()) + " reads lane " + std::to_string(source) +
                           ", which is not in the mask, in shuffle, " + Place(where).text());
  }
  own[2] = source;
  together(shuffled, mask, "shuffle", where, [mask](Warp& warp) {
    for (uint32_t i = 0; i < 32; ++i) {
      if (mask >> i & 1) std::memcpy(warp.result[i], warp.brought[warp.brought[i][2]], 8);
    }
  });
  std::memcpy(value, result(), 8);
}

// Lane 8 m + r reads row r of matrix m; it gets elements (lane / 4, 2 (lane % 4)) and the next one of
// each matrix, or of its transpose.
void ldmatrix(uint32_t* r, int count, bool transposed, const void* row, std::source_location where) {
  uint32_t* own = brought();
  if (int(lane()) < 8 * count) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
      fail("misaligned", name_of(self()) + " reads a row of ldmatrix at " + Place(where).text() +
                             " that is not aligned to 16 bytes");
    }
    if (memory_of(row, 16, "reads", where).owner != self().block) {
      fail("out-of-bounds", name_of(self()) + " reads a row of ldmatrix at " + Place(where).text() +
                                " that is not in its block's shared memory");
    }
    load(own, row, 16, where);
  }
  own[4] = uint32_t(count) * 2 + transposed;
  together(matrices, ~0u, "ldmatrix", where, [count, transposed](Warp& warp) {
    for (int i = 0; i < 32; ++i) {
      for (int m = 0; m < count; ++m) {
        uint32_t word = 0;
        for (int half = 0; half < 2; ++half) {
          const int x = i / 4, y = i % 4 * 2 + half;
          const int from = transposed ? y : x, column = transposed ? x : y;
          word |= uint32_t(half_of(warp.brought[8 * m + from][column / 2], column % 2)) << 16 * half;
        }
        warp.result[i][m] = word;
      }
    }
  });
  std::memcpy(r, result(), 4 * count);
}

}  // namespace bytes

}  // namespace simt
