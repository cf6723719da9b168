// A head spread over several blocks, each of which owns `Units` units: what both directions share.
//
// The operand of a step, of all units, comes from the exchange; the block multiplies it by its
// columns of R, which its warps divide by columns and by terms; the sums of the terms meet in shared
// memory, where the warp that owns a group of units takes those of its gates. A group of blocks has
// one head and some tiles of 16 rows in flight: while one tile's part of an operand is on its way to
// the other blocks, a block computes the next tile's step. R serves all tiles; each has slots, sums
// and states of its own, so that no tile waits for what only another needs.
#pragma once

#include "cuda/exchange.hpp"
#include "cuda/head.hpp"
#include "cuda/math.hpp"

namespace flashrnn {

// Of the tiling: units per block, blocks per head, warps over columns and over terms, how many parts
// of the terms leave their sums in shared memory at once (all, or one, to which the others add in
// turn), how many of a warp's operands of R are in registers, and how many tiles of rows are in
// flight.
template <int Units, int Blocks, int WarpsN, int WarpsK, int Parts, int Held, int TilesInFlight>
struct Spreading {
  static constexpr int units = Units, blocks = Blocks;
  static constexpr int warps_n = WarpsN, warps_k = WarpsK, parts = Parts, held = Held;
  static constexpr int in_flight = TilesInFlight;
  static_assert(Parts == WarpsK || Parts == 1);
  static constexpr int warps = WarpsN * WarpsK;
  // A lane has one or two neighbouring units of a group.
  static constexpr int units_per_group = Units % 8 == 0 ? 8 : 4, per_lane = units_per_group / 4;
  static constexpr int groups = Units / units_per_group;
  static constexpr int groups_per_warp = ceil_div(groups, warps);
  static_assert(Units % 4 == 0);
};

// One of the tiles in flight. Constants: how many numbers per unit are kept in shared memory.
template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged,
          int Columns, int KTiles, int Constants>
struct Spread : HeadOfRows<Cell, Storage, D> {
  using Base = HeadOfRows<Cell, Storage, D>;
  using typename Base::F;
  using Base::G, Base::Gr, Base::S, Base::dense, Base::place, Base::B, Base::n, Base::rows;
  static constexpr int per_lane = Tiling::per_lane, elements = 2 * per_lane;
  static constexpr int groups_per_warp = Tiling::groups_per_warp;
  static constexpr int columns_per_warp = ceil_div(at_least(Columns, 1), Tiling::warps_n);
  static constexpr int k_per_warp = ceil_div(at_least(KTiles, 1), Tiling::warps_k);
  static constexpr int k_tiles = k_per_warp * Tiling::warps_k;  // zeros at the end
  using R = Right<Storage, columns_per_warp, k_per_warp, Tiling::held>;
  using UnitsOf = Few<Storage, D, per_lane>;
  struct alignas(16) Sums {
    float of[4];
  };
  static constexpr int sums = Tiling::warps_n * columns_per_warp * lanes;  // per part of the terms
  static constexpr int threads = Tiling::warps * lanes;
  using Exchange = Exchanged<k_tiles, Tiling::blocks>;
  // Shared memory: each tile's exchange; each tile's sums; constants; R's part per warp.
  static constexpr int exchange_bytes = dense ? ceil_div(Exchange::shared_bytes, 16) * 16 : 0;
  static constexpr int sums_bytes = dense ? Tiling::parts * sums * int(sizeof(Sums)) : 0;
  static constexpr int sums_begin = Tiling::in_flight * exchange_bytes;
  static constexpr int constants_begin = sums_begin + Tiling::in_flight * sums_bytes;
  static constexpr int r_begin =
      constants_begin + ceil_div(Constants * Tiling::units * 4, 16) * 16;
  static constexpr int shared_bytes = r_begin + (dense ? Tiling::warps * R::bytes_per_warp : 0);
  static constexpr int words_per_group = F::k_units == 16 ? per_lane : 4;
  // Of one gate's operand, or h's.
  static constexpr int bytes_of_parts =
      ceil_div(D, Tiling::units_per_group) * words_per_group * lanes * 4;

  int warp_n, warp_k;
  Exchange exchange;
  Sums* partial;
  float* constants;

  // Tile `number` of those in flight; operands: how many of D units an exchange has.
  template <class Arguments>
  FLASHRNN_INLINE Spread(const Arguments& a, int number, int operands)
      : Spread(a, number, operands, int(a.first) + block_y(),
               ceil_div(int(a.B), Tiling::in_flight * rows_per_block)) {}
  template <class Arguments>
  FLASHRNN_INLINE Spread(const Arguments& a, int number, int operands, int item, int items_per_head)
      : Base(a, item / items_per_head,
             (item % items_per_head * Tiling::in_flight + number) * rows_per_block),
        warp_n(place.warp % Tiling::warps_n), warp_k(place.warp / Tiling::warps_n),
        exchange(a, block_y() * Tiling::in_flight + number, shared(number * exchange_bytes),
                 operands * bytes_of_parts),
        partial(reinterpret_cast<Sums*>(shared(sums_begin + number * sums_bytes))),
        constants(reinterpret_cast<float*>(shared(constants_begin))) {}

  static FLASHRNN_INLINE unsigned char* shared(int offset) {
    return static_cast<unsigned char*>(shared_memory()) + offset;
  }
  // This warp's part of R in shared memory.
  FLASHRNN_INLINE Column* own_r() const {
    return reinterpret_cast<Column*>(shared(r_begin + place.warp * R::bytes_per_warp));
  }

  // Whether this tile has step t of the loop; one that is alone has all.
  FLASHRNN_INLINE bool has(int t) const { return Tiling::in_flight == 1 || t < rows.longest; }

  // Group i of this warp: in the block; of all units; whether the head has it.
  FLASHRNN_INLINE int in_block_of(int i) const { return place.warp + i * Tiling::warps; }
  FLASHRNN_INLINE int group_of(int i) const { return block_x() * Tiling::groups + in_block_of(i); }
  FLASHRNN_INLINE bool owns(int i) const {
    return in_block_of(i) < Tiling::groups && group_of(i) * Tiling::units_per_group < D;
  }
  FLASHRNN_INLINE int unit_of(int i) const {
    return group_of(i) * Tiling::units_per_group + place.lane % 4 * per_lane;
  }

  // The partial sums of this warp, and, once all have theirs, those of a column of operands.
  FLASHRNN_INLINE void multiply(const R& r) {
    const Operand* own = exchange.complete(place) + (warp_k * k_per_warp * lanes + place.lane);
    float sum[columns_per_warp][4] = {};
    r.template multiply<Exchange::ahead>(
        sum, [own](int k) { return Exchange::load(own + k * lanes); });
    if constexpr (Tiling::parts == Tiling::warps_k) {
      leave(sum, partial + warp_k * sums, false);
      block_barrier();
    } else {
#pragma unroll
      for (int k = 0; k < Tiling::warps_k; ++k) {
        if (warp_k == k) leave(sum, partial, k > 0);
        block_barrier();
      }
    }
  }
  FLASHRNN_INLINE void leave(const float (&sum)[columns_per_warp][4], Sums* to, bool adding) const {
#pragma unroll
    for (int j = 0; j < columns_per_warp; ++j) {
      Sums& at = to[(warp_n * columns_per_warp + j) * lanes + place.lane];
      Sums all{{sum[j][0], sum[j][1], sum[j][2], sum[j][3]}};
      if (adding) {
#pragma unroll
        for (int e = 0; e < 4; ++e) all.of[e] += at.of[e];
      }
      at = all;
    }
  }
  FLASHRNN_INLINE Sums total(int column) const {
    Sums all = partial[column * lanes + place.lane];
#pragma unroll
    for (int k = 1; k < Tiling::parts; ++k) {
      const Sums more = partial[k * sums + column * lanes + place.lane];
#pragma unroll
      for (int e = 0; e < 4; ++e) all.of[e] += more.of[e];
    }
    return all;
  }

  // Group i's part of an operand that begins at k tile `first`: numbers by row, then unit.
  FLASHRNN_INLINE void send(int first, int i, const float (&x)[elements]) {
    const int group = group_of(i);
    if constexpr (F::k_units == 8) {  // tf32
      static_assert(per_lane == 2, "tf32 takes units by eights");
      exchange.put((first + group) * lanes + place.lane, 0,
                   Together<4>{{round_tf32(x[0]), round_tf32(x[2]), round_tf32(x[1]),
                                round_tf32(x[3])}});
    } else if constexpr (per_lane == 2) {
      exchange.put((first + group / 2) * lanes + place.lane, group % 2 * 2,
                   Together<2>{{F::pack(x[0], x[1]), F::pack(x[2], x[3])}});
    } else {  // neighbouring lanes have neighbouring units: one takes the upper row, one the lower
      const int q = place.lane % 4, lower = q % 2;
      const float other = from_lane(lower ? x[0] : x[1], 1);
      const uint32_t both = lower ? F::pack(other, x[1]) : F::pack(x[0], other);
      const int at = place.lane - q + group % 2 * 2 + q / 2;
      exchange.put((first + group / 4) * lanes + at, group / 2 % 2 * 2 + lower, Together<1>{{both}});
    }
  }

  // This lane's part of [S, B, 1, N, D]; zeros where that is null.
  FLASHRNN_INLINE void load_states(float (&to)[groups_per_warp][S][elements],
                                   const Storage* from) const {
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const bool inside = from != nullptr && owns(i) && rows.at[row] < B;
          const UnitsOf x = UnitsOf::load(from + this->of_state(s, row), unit_of(i), inside);
#pragma unroll
          for (int u = 0; u < per_lane; ++u) to[i][s][row * per_lane + u] = x[u];
        }
      }
    }
  }

  FLASHRNN_INLINE void store_states(Storage* to,
                                    const float (&from)[groups_per_warp][S][elements]) const {
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          UnitsOf::store(to + this->of_state(s, row), unit_of(i), owns(i) && rows.at[row] < B,
                         from[i][s] + row * per_lane);
        }
      }
    }
  }
};

// A kernel: the `Count` tiles of rows that a group of blocks has in flight take each step in turn.
template <class Tile, int Count, int... Numbers>
struct InFlight : InFlight<Tile, Count - 1, Count - 1, Numbers...> {
  using InFlight<Tile, Count - 1, Count - 1, Numbers...>::InFlight;
};
template <class Tile, int... Numbers>
struct InFlight<Tile, 0, Numbers...> {
  using Arguments = typename Tile::Arguments;
  static constexpr int count = sizeof...(Numbers), shared_bytes = Tile::shared_bytes;
  Tile tile[count];

  FLASHRNN_INLINE explicit InFlight(const Arguments& a) : tile{Tile(a, Numbers)...} {}

  FLASHRNN_INLINE void run() {
    const typename Tile::R r = prepare();
#pragma unroll
    for (int i = 0; i < count; ++i) tile[i].begin();
    Tile::each_step(longest(), [&](int t) {
#pragma unroll
      for (int i = 0; i < count; ++i) tile[i].step(t, r);
    });
#pragma unroll
    for (int i = 0; i < count; ++i) tile[i].end();
  }

  // What comes before the first step: R, and all that blocks and threads share.
  FLASHRNN_INLINE typename Tile::R prepare() {
    if constexpr (Tile::dense) {
#pragma unroll
      for (int i = 0; i < count; ++i) tile[i].exchange.start();
      Tile::Exchange::all_started();
    }
    tile[0].load_constants();
    typename Tile::R r{};
    if constexpr (Tile::dense) tile[0].load_r(r);
    block_barrier();
    return r;
  }

  FLASHRNN_INLINE int longest() const {
    int most = tile[0].rows.longest;
#pragma unroll
    for (int i = 1; i < count; ++i) {
      const int other = tile[i].rows.longest;
      most = other > most ? other : most;
    }
    return most;
  }
};

}  // namespace flashrnn
