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

// R as the right operand: `Columns` tiles of 8 columns per warp, `KTiles` of terms, of which the
// first `Held` are in registers and the others in shared memory, in the order in which lanes read.
template <class Storage, int Columns, int KTiles, int Held>
struct Right {
  static constexpr int shared_tiles = KTiles - Held;
  static constexpr int bytes_per_warp = shared_tiles * Columns * lanes * int(sizeof(Column));
  uint32_t held[at_least(Held, 1)][Columns][2];
  Column* rest;

  // value(column tile, column in it, term): an element of R, zero outside.
  template <class Value>
  FLASHRNN_INLINE void load(Column* shared, const Place& at, const Value& value) {
    using F = Format<Storage>;
    rest = shared + at.lane;
#pragma unroll
    for (int k = 0; k < KTiles; ++k) {
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        uint32_t words[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if constexpr (F::k_units == 16) {
            const int term = k * 16 + half * 8 + at.pair;
            words[half] = F::join(value(j, at.row, term), value(j, at.row, term + 1));
          } else {
            words[half] = round_tf32(F::widen(value(j, at.row, k * 8 + at.pair + half)));
          }
        }
        if (k < Held) {
          held[k][j][0] = words[0];
          held[k][j][1] = words[1];
        } else {
          rest[((k - Held) * Columns + j) * lanes] = {words[0], words[1]};
        }
      }
      // loads of all of R at once would take more registers than R itself
      warp_barrier();
    }
  }

  // sum += left R. Only lanes of this warp read what it wrote.
  FLASHRNN_INLINE void multiply(float (&sum)[Columns][4], const Operand* left, int lane) const {
#pragma unroll
    for (int k = 0; k < KTiles; ++k) {
      const Operand a = left[k * lanes + lane];
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        if (k < Held) {
          Format<Storage>::multiply(sum[j], a.words, held[k][j]);
        } else {
          const Column b = rest[((k - Held) * Columns + j) * lanes];
          Format<Storage>::multiply(sum[j], a.words, b.words);
        }
      }
    }
  }
};

}  // namespace flashrnn
