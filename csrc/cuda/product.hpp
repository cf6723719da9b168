// The product of a tile of 16 rows with R, which stays on the chip for the whole sequence.
//
// A lane's place in a fragment: rows `row` and `row + 8` of the tile, units `pair` and `pair + 1`
// of each 8. An accumulator of the tensor cores and an operand of the next step's product have the
// same lane hold the same numbers, so a step's results go to shared memory as a lane's own
// words and come back as whole operands, 16 bytes per lane. (tf32: terms of a product may come in any order;
// here term q of 8 is unit 2q and term q + 4 is unit 2q + 1.)
#pragma once

#include "cuda/storage.hpp"

namespace flashrnn {

constexpr int rows_per_block = 16, units_per_tile = 8, lanes = 32;

struct Place {
  int lane, warp, row, pair;

  FLASHRNN_INLINE Place()
      : lane(thread_index() % lanes), warp(thread_index() / lanes), row(lane / 4),
        pair(lane % 4 * 2) {}
};

struct alignas(16) Operand {
  uint32_t words[4];
};

struct alignas(8) Column {
  uint32_t words[2];
};

// The left operand in shared memory: `Tiles` tiles of 8 units, 16 rows each.
template <class Storage, int Tiles>
struct Left {
  static constexpr int tiles_per_k = Format<Storage>::k_units / units_per_tile;
  static constexpr int k_tiles = ceil_div(Tiles, tiles_per_k);
  static constexpr int bytes = k_tiles * lanes * int(sizeof(Operand));

  // Units `pair` and `pair + 1` of tile `tile`: x of row `row`, y of row `row + 8`.
  static FLASHRNN_INLINE void put(Operand* left, int tile, int lane, const float (&x)[2],
                                  const float (&y)[2]) {
    uint32_t* words = left[tile / tiles_per_k * lanes + lane].words;
    if constexpr (tiles_per_k == 2) {
      const int half = tile % 2 * 2;
      words[half] = Format<Storage>::pack(x[0], x[1]);
      words[half + 1] = Format<Storage>::pack(y[0], y[1]);
    } else {
      words[0] = round_tf32(x[0]);
      words[1] = round_tf32(y[0]);
      words[2] = round_tf32(x[1]);
      words[3] = round_tf32(y[1]);
    }
  }
};

// A lane's way through the terms of its columns of R [N, D, P] of one gate: along units of h.
template <class Storage, int D, int Columns>
struct AlongH {
  const Storage* at[Columns];
  int p;
  FLASHRNN_INLINE typename Format<Storage>::Pair pair(int j, int offset) const {
    return load_pair<Storage, D>(at[j] - p, p + offset, true);
  }
  FLASHRNN_INLINE void advance(int terms) {
    p += terms;
#pragma unroll
    for (int j = 0; j < Columns; ++j) at[j] += terms;
  }
};

// The same along the units of each gate of R [G, N, D, P], padded to whole operands; column tile j is
// 8 j units of h from the first.
template <class Storage, int D>
struct AlongGates {
  static constexpr int terms_per_gate =
      ceil_div(D, Format<Storage>::k_units) * Format<Storage>::k_units;
  const Storage* at;
  int p, d, gates_left;
  int64_t per_gate;
  FLASHRNN_INLINE typename Format<Storage>::Pair pair(int j, int offset) const {
    const Storage* from = at + offset * D + j * units_per_tile;
    const int unit = gates_left > 0 && p + j * units_per_tile < D ? d + offset : D;
    return Format<Storage>::join(unit < D ? from[0] : Storage{}, unit + 1 < D ? from[D] : Storage{});
  }
  FLASHRNN_INLINE void advance(int terms) {
    const bool next = d + terms >= terms_per_gate;
    d += next ? terms - terms_per_gate : terms;
    at += terms * D + (next ? per_gate - terms_per_gate * D : int64_t{0});
    gates_left -= next;
  }
};

// R as the right operand: `Columns` tiles of 8 columns per warp, `KTiles` of terms, of which the
// first `Held` are in registers and the others in shared memory, in the order in which lanes read.
template <class Storage, int Columns, int KTiles, int Held>
struct Right {
  static constexpr int shared_tiles = KTiles - Held;
  static constexpr int bytes_per_warp = shared_tiles * Columns * lanes * int(sizeof(Column));
  uint32_t held[at_least(Held, 1)][Columns][2];
  Column* rest;

  // From where `walk` stands: pair(column, offset) are R's elements at so many terms from there and
  // the next, zeros outside; advance(terms) goes on.
  template <class Walk>
  FLASHRNN_INLINE void load(Column* shared, const Place& at, Walk walk) {
    rest = shared + at.lane;
#pragma unroll
    for (int k = 0; k < Held; ++k) {
#pragma unroll
      for (int j = 0; j < Columns; ++j) read(held[k][j], walk, j);
      walk.advance(Format<Storage>::k_units);
    }
#pragma unroll 1
    for (int k = Held; k < KTiles; ++k) {
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        uint32_t words[2];
        read(words, walk, j);
        rest[((k - Held) * Columns + j) * lanes] = {words[0], words[1]};
      }
      walk.advance(Format<Storage>::k_units);
    }
  }

  template <class Walk>
  static FLASHRNN_INLINE void read(uint32_t (&words)[2], const Walk& walk, int j) {
    using F = Format<Storage>;
    if constexpr (F::k_units == 16) {
      words[0] = walk.pair(j, 0);
      words[1] = walk.pair(j, 8);
    } else {
      const auto both = walk.pair(j, 0);
      words[0] = round_tf32(F::first(both));
      words[1] = round_tf32(F::second(both));
    }
  }

  // sum += left R, operand k of which is operand(k). Ahead: so many are fetched before they are used.
  template <int Ahead, class OperandOf>
  FLASHRNN_INLINE void multiply(float (&sum)[Columns][4], const OperandOf& operand) const {
    Operand fetched[at_least(Ahead, 1)];
#pragma unroll
    for (int k = 0; k < Ahead && k < KTiles; ++k) fetched[k] = operand(k);
#pragma unroll
    for (int k = 0; k < KTiles; ++k) {
      const int slot = k % at_least(Ahead, 1);
      const Operand a = Ahead == 0 ? operand(k) : fetched[slot];
      if (Ahead > 0 && k + Ahead < KTiles) fetched[slot] = operand(k + Ahead);
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        if (k < Held) {
          Format<Storage>::multiply(sum[j], a.words, held[k][j]);
        } else {
          // only lanes of this warp read what it wrote
          const Column b = rest[((k - Held) * Columns + j) * lanes];
          Format<Storage>::multiply(sum[j], a.words, b.words);
        }
      }
    }
  }
};

}  // namespace flashrnn
