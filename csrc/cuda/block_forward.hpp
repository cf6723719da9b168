// The forward recurrence of any cell, a head in one block: 16 rows of the batch, all T steps.
//
// A warp owns `tiles_per_warp` tiles of 8 units, with all of their gates, so the gates of a unit
// meet in one lane. Per step: h of all units, in shared memory, times R; Wx and bias are added, the
// cell's pointwise part is applied in float32 to the accumulators, h goes to the other of two
// buffers, and the block meets once. Wx of the next step is fetched before the product.
#pragma once

#include "cuda/head.hpp"
#include "cuda/math.hpp"

namespace flashrnn {

// Fields of 8 bytes, mirrored by flashrnn/runtime/cuda_launch.py. Strides in elements.
template <class Storage>
struct ForwardArguments {
  const Storage* wx;  // [B, T, G_w, N, D]
  int64_t wx_b, wx_t, wx_g, wx_n;
  const Storage* r;        // [G_r, N, D, P] contiguous
  const Storage* bias;     // [G, N, D] contiguous
  const Storage* weights;  // [K, N, D] contiguous, or null
  const Storage* initial;  // [S, B, 1, N, D] contiguous
  Storage* states;         // [S, B, T, N, D], zero already past the end of rows
  int64_t states_s, states_b, states_t, states_n;
  Storage* last;           // [S, B, 1, N, D] contiguous
  Storage* saved;          // [T, B, N, saved, D] contiguous, by step; or null
  const int64_t* lengths;  // [B], or null
  int64_t B, T, N, reverse;
};

template <class Cell, class Storage, int D, int Warps, int TilesPerWarp, int KHeld, bool Training>
struct BlockForward : Head<Cell, Storage, D, Warps, TilesPerWarp> {
  using Base = Head<Cell, Storage, D, Warps, TilesPerWarp>;
  using typename Base::F, typename Base::Pair;
  using Base::G, Base::Gr, Base::S, Base::K, Base::Q;
  using Base::tiles, Base::padded, Base::dense, Base::place, Base::n, Base::rows;
  using Base::tile_of, Base::unit_of;
  using Arguments = ForwardArguments<Storage>;
  static constexpr int Gw = Cell::inputs;
  using H = Left<Storage, tiles>;
  static constexpr int columns = at_least(Gr, 1) * TilesPerWarp;
  using R = Right<Storage, columns, H::k_tiles, KHeld>;
  // Shared memory: h twice; bias and weights; R's part per warp.
  static constexpr int h_bytes = dense ? H::bytes : 0;
  static constexpr int constants_bytes = (G + K) * padded * 4;
  static constexpr int shared_bytes =
      2 * h_bytes + constants_bytes + (dense ? Warps * R::bytes_per_warp : 0);

  const Arguments& a;
  float* constants;
  float state[TilesPerWarp][S][4];
  Pair fetched[TilesPerWarp][at_least(Gw, 1)][2];

  FLASHRNN_INLINE explicit BlockForward(const Arguments& arguments)
      : Base(arguments), a(arguments) {}

  // Column tile g * TilesPerWarp + j of R: unit tile j of gate g of R.
  FLASHRNN_INLINE void run() {
    auto* h = static_cast<Operand*>(shared_memory());
    constants = reinterpret_cast<float*>(static_cast<char*>(shared_memory()) + 2 * h_bytes);
    auto* rest = reinterpret_cast<Column*>(reinterpret_cast<char*>(constants) + constants_bytes);
    load_constants();
    this->load_states(state, a.initial);
    R r;
    if constexpr (dense) {
      this->clear(h, 2 * h_bytes);
      block_barrier();
      publish(h);
      r.load(rest + place.warp * (R::bytes_per_warp / int(sizeof(Column))), place,
             this->template along_h<columns>(
                 a.r, 0, [](int column) { return column / TilesPerWarp; },
                 [&](int column) {
                   return tile_of(column % TilesPerWarp) * units_per_tile + place.row;
                 }));
    }
    block_barrier();
    fetch(0);
    for (int t = 0; t < rows.longest; ++t) {
      Pair wx[TilesPerWarp][at_least(Gw, 1)][2];
      copy(wx);
      if (t + 1 < rows.longest) fetch(t + 1);
      float sum[columns][4] = {};
      if constexpr (dense) {
        const Operand* now = h + t % 2 * (h_bytes / int(sizeof(Operand))) + place.lane;
        r.template multiply<0>(sum, [now](int k) { return now[k * lanes]; });
      }
#pragma unroll
      for (int j = 0; j < TilesPerWarp; ++j) advance(t, j, sum, wx);
      if constexpr (dense) {
        publish(h + (t + 1) % 2 * (h_bytes / int(sizeof(Operand))));
        block_barrier();
      }
    }
    this->store_states(a.last, state);
  }

  FLASHRNN_INLINE void load_constants() {
    for (int i = thread_index(); i < (G + K) * padded; i += Warps * lanes) {
      const int row = i / padded, d = i % padded;
      const Storage* from = row < G ? a.bias + (row * a.N + n) * D
                                    : a.weights + ((row - G) * a.N + n) * D;
      constants[i] = d < D ? F::widen(from[d]) : 0.0f;
    }
  }

  // This lane's part of h, for the next step's product.
  FLASHRNN_INLINE void publish(Operand* h) const {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
      if (tile_of(j) >= tiles) continue;
      const float(&own)[4] = state[j][0];
      H::put(h, tile_of(j), place.lane, {own[0], own[1]}, {own[2], own[3]});
    }
  }

  FLASHRNN_INLINE void fetch(int t) {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int g = 0; g < Gw; ++g) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Storage* from = a.wx + rows.at[i] * a.wx_b + rows.time(i, t) * a.wx_t +
                                g * a.wx_g + n * a.wx_n;
          fetched[j][g][i] = load_pair<Storage, D>(from, unit_of(j), rows.active(i, t));
        }
      }
    }
  }

  FLASHRNN_INLINE void copy(Pair (&wx)[TilesPerWarp][at_least(Gw, 1)][2]) const {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int g = 0; g < Gw; ++g) {
        wx[j][g][0] = fetched[j][g][0];
        wx[j][g][1] = fetched[j][g][1];
      }
    }
  }

  // One step of unit tile j.
  FLASHRNN_INLINE void advance(int t, int j, const float (&sum)[columns][4],
                               const Pair (&wx)[TilesPerWarp][at_least(Gw, 1)][2]) {
    float next[S][4], save[at_least(Q, 1)][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int unit = unit_of(j) + e % 2;
      const float* own = constants + (unit < padded ? unit : 0);
      float gate[G], before[S], weight[at_least(K, 1)], after[S], kept[at_least(Q, 1)];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        float x = own[g * padded];
        if (Cell::input_slot[g] >= 0) {
          const Pair p = wx[j][at_least(Cell::input_slot[g], 0)][e / 2];
          x += e % 2 == 0 ? F::first(p) : F::second(p);
        }
        if (Cell::recurrent_slot[g] >= 0) {
          x += sum[at_least(Cell::recurrent_slot[g], 0) * TilesPerWarp + j][e];
        }
        gate[g] = x;
      }
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k] = own[(G + k) * padded];
#pragma unroll
      for (int s = 0; s < S; ++s) before[s] = state[j][s][e];
      Cell::template forward<Lane>(gate, before, weight, after, kept);
      const bool keeps = rows.active(e / 2, t) && unit < D;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        next[s][e] = after[s];
        if (keeps) state[j][s][e] = after[s];
      }
      if constexpr (Training) {
#pragma unroll
        for (int k = 0; k < Q; ++k) save[k][e] = kept[k];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = rows.active(i, t);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        Storage* to = a.states + s * a.states_s + rows.at[i] * a.states_b +
                      rows.time(i, t) * a.states_t + n * a.states_n;
        store_pair<Storage, D>(to, unit_of(j), inside, next[s][2 * i], next[s][2 * i + 1]);
      }
      if constexpr (Training) {
#pragma unroll
        for (int k = 0; k < Q; ++k) {
          Storage* to = a.saved + this->of_saved(t, i, k);
          store_pair<Storage, D>(to, unit_of(j), inside, save[k][2 * i], save[k][2 * i + 1]);
        }
      }
    }
  }
};

}  // namespace flashrnn
