// A head and 16 rows of the batch: where their numbers lie; and what both directions of a head in
// one block know: who owns which units, and how a lane's states come from memory and go back.
#pragma once

#include "cuda/rows.hpp"

namespace flashrnn {

template <class Cell, class Storage, int D>
struct HeadOfRows {
  using F = Format<Storage>;
  using Pair = typename F::Pair;
  static constexpr int G = Cell::gates, Gr = Cell::recurrent;
  static constexpr int S = Cell::states, K = Cell::weights, Q = Cell::saved;
  static constexpr int tiles = ceil_div(D, units_per_tile), padded = tiles * units_per_tile;
  static constexpr bool dense = Gr > 0;

  Place place;
  int B, N, n;
  Rows rows;

  template <class Arguments>
  FLASHRNN_INLINE HeadOfRows(const Arguments& a, int head, int first_row)
      : B(int(a.B)), N(int(a.N)), n(head),
        rows(place, first_row, a.lengths, B, int(a.T), a.reverse != 0) {}

  // Where state s of row i begins in [S, B, 1, N, D].
  FLASHRNN_INLINE int64_t of_state(int s, int i) const {
    return ((int64_t{s} * B + rows.at[i]) * N + n) * D;
  }

  // Where value k of row i at step t begins in [T, B, N, saved, D].
  FLASHRNN_INLINE int64_t of_saved(int t, int i, int k) const {
    return (((int64_t{t} * B + unknown(rows.at[i])) * N + n) * Q + k) * D;
  }

  // A lane's way through R from term `first` on. Column j is gate_of(j), unit_of(j); units beyond the
  // head's stand for any, since what is theirs is never kept.
  template <int Columns, class GateOf, class UnitOf>
  FLASHRNN_INLINE AlongH<Storage, D, Columns> along_h(const Storage* r, int first,
                                                      const GateOf& gate_of,
                                                      const UnitOf& unit_of) const {
    AlongH<Storage, D, Columns> walk;
    walk.p = first + place.pair;
#pragma unroll
    for (int j = 0; j < Columns; ++j) {
      const int d = unit_of(j) < D ? unit_of(j) : D - 1;
      walk.at[j] = r + (int64_t{gate_of(j)} * N + n) * (D * D) + d * D + walk.p;
    }
    return walk;
  }

  // The same backward: terms are those of gate after gate, columns units of h from `unit` on.
  FLASHRNN_INLINE AlongGates<Storage, D> along_gates(const Storage* r, int first, int unit) const {
    AlongGates<Storage, D> walk;
    const int gate = first / walk.terms_per_gate;
    walk.p = unit + place.row;
    walk.d = first % walk.terms_per_gate + place.pair;
    walk.gates_left = Gr - gate;
    walk.per_gate = int64_t{N} * (D * D);
    walk.at = r + (int64_t{gate} * N + n) * (D * D) + walk.d * D + walk.p;
    return walk;
  }
};

// A warp owns TilesPerWarp tiles of 8 units; a lane has two rows and two units of each.
template <class Cell, class Storage, int D, int Warps, int TilesPerWarp>
struct Head : HeadOfRows<Cell, Storage, D> {
  using Base = HeadOfRows<Cell, Storage, D>;
  using typename Base::F, typename Base::Pair;
  using Base::S, Base::tiles, Base::place, Base::B, Base::rows;
  static_assert(Warps * TilesPerWarp >= tiles, "every tile of units has a warp");

  template <class Arguments>
  FLASHRNN_INLINE explicit Head(const Arguments& a)
      : Base(a, block_y(), block_x() * rows_per_block) {}

  FLASHRNN_INLINE int tile_of(int j) const { return place.warp * TilesPerWarp + j; }
  FLASHRNN_INLINE int unit_of(int j) const { return tile_of(j) * units_per_tile + place.pair; }

  // This lane's part of [S, B, 1, N, D]; zeros where that is null.
  FLASHRNN_INLINE void load_states(float (&to)[TilesPerWarp][S][4], const Storage* from) const {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool inside = from != nullptr && rows.at[i] < B;
          const Pair p = load_pair<Storage, D>(from + this->of_state(s, i), unit_of(j), inside);
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
          store_pair<Storage, D>(to + this->of_state(s, i), unit_of(j), rows.at[i] < B,
                                 from[j][s][2 * i], from[j][s][2 * i + 1]);
        }
      }
    }
  }

  // Padding of operands is multiplied by zeros, so it must be finite.
  static FLASHRNN_INLINE void clear(Operand* operands, int bytes) {
    for (int i = thread_index(); i < bytes / int(sizeof(Operand)); i += Warps * lanes)
      operands[i] = Operand{{0, 0, 0, 0}};
  }
};

}  // namespace flashrnn
