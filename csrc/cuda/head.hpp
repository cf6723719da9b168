// What both directions know of a head in one block: who owns which units, and how a lane's states
// come from memory and go back.
#pragma once

#include "cuda/rows.hpp"

namespace flashrnn {

// A warp owns TilesPerWarp tiles of 8 units; a lane has two rows and two units of each.
template <class Cell, class Storage, int D, int Warps, int TilesPerWarp>
struct Head {
  using F = Format<Storage>;
  using Pair = typename F::Pair;
  static constexpr int G = Cell::gates, Gr = Cell::recurrent;
  static constexpr int S = Cell::states, K = Cell::weights, Q = Cell::saved;
  static constexpr int tiles = ceil_div(D, units_per_tile), padded = tiles * units_per_tile;
  static_assert(Warps * TilesPerWarp >= tiles, "every tile of units has a warp");
  static constexpr bool dense = Gr > 0;
  // No tile of this head is padded.
  static constexpr bool full = D % F::k_units == 0 && Warps * TilesPerWarp == tiles;

  Place place;
  int B, N, n;
  Rows rows;

  template <class Arguments>
  FLASHRNN_INLINE explicit Head(const Arguments& a)
      : B(int(a.B)), N(int(a.N)), n(block_y()), rows(place, a.lengths, B, int(a.T), a.reverse != 0) {}

  FLASHRNN_INLINE int tile_of(int j) const { return place.warp * TilesPerWarp + j; }
  FLASHRNN_INLINE int unit_of(int j) const { return tile_of(j) * units_per_tile + place.pair; }

  // Where state s of row i begins in [S, B, 1, N, D].
  FLASHRNN_INLINE int64_t of_state(int s, int i) const {
    return ((int64_t{s} * B + rows.at[i]) * N + n) * D;
  }

  // Where value k of row i at step t begins in [T, B, N, saved, D].
  FLASHRNN_INLINE int64_t of_saved(int t, int i, int k) const {
    return (((int64_t{t} * B + rows.at[i]) * N + n) * Q + k) * D;
  }

  // This lane's part of [S, B, 1, N, D]; zeros where that is null.
  FLASHRNN_INLINE void load_states(float (&to)[TilesPerWarp][S][4], const Storage* from) const {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool inside = from != nullptr && rows.at[i] < B;
          const Pair p = load_pair<Storage, D>(from + of_state(s, i), unit_of(j), inside);
          to[j][s][2 * i] = F::first(p);
          to[j][s][2 * i + 1] = F::second(p);
        }
      }
    }
  }

  FLASHRNN_INLINE void store_states(Storage* to, const float (&from)[TilesPerWarp][S][4]) const {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          store_pair<Storage, D>(to + of_state(s, i), unit_of(j), rows.at[i] < B,
                                 from[j][s][2 * i], from[j][s][2 * i + 1]);
        }
      }
    }
  }

  // R's entry for unit d of gate g and unit p of h; zero in padding.
  FLASHRNN_INLINE Storage recurrent_entry(const Storage* r, int g, int d, int p) const {
    const Storage* of_gate = r + (g * N + n) * (D * D);
    return full || (d < D && p < D) ? of_gate[d * D + p] : Storage{};
  }

  // Padding of operands is multiplied by zeros, so it must be finite.
  static FLASHRNN_INLINE void clear(Operand* operands, int bytes) {
    for (int i = thread_index(); i < bytes / int(sizeof(Operand)); i += Warps * lanes)
      operands[i] = Operand{{0, 0, 0, 0}};
  }
};

}  // namespace flashrnn
