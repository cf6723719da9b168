// The backward recurrence of any cell, a head in one block: 16 rows of the batch, last step first.
//
// A warp owns `tiles_per_warp` tiles of 8 units. Per step: the cotangents of the new states are
// what is carried and the loss's own; the cell's derivative turns them into those of the gates,
// which are stored and go to shared memory; the block meets once; their product with R is what h's
// cotangent gets through the step. dR and db are sums over all steps of the gates' gradients, and
// are taken outside.
#pragma once

#include "cuda/head.hpp"
#include "cuda/math.hpp"

namespace flashrnn {

// Fields of 8 bytes, mirrored by flashrnn/runtime/cuda_launch.py. Strides in elements.
template <class Storage>
struct BackwardArguments {
  const Storage* r;        // [G_r, N, D, P] contiguous
  const Storage* weights;  // [K, N, D] contiguous, or null
  const Storage* initial;  // [S, B, 1, N, D] contiguous
  const Storage* states;   // [S, B, T, N, D]
  int64_t states_s, states_b, states_t, states_n;
  const Storage* saved;     // [T, B, N, saved, D], as the forward pass wrote it
  const Storage* d_states;  // [S, B, T, N, D], or null
  int64_t d_states_s, d_states_b, d_states_t, d_states_n;
  const Storage* d_last;  // [S, B, 1, N, D] contiguous, or null
  Storage* d_gates;       // [B, T, G, N, D], zero already past the end of rows
  int64_t d_gates_b, d_gates_t, d_gates_g, d_gates_n;
  Storage* d_initial;      // [S, B, 1, N, D] contiguous
  float* d_weights;        // [blocks of rows, K, N, D] contiguous, or null
  const int64_t* lengths;  // [B], or null
  int64_t B, T, N, reverse;
  double clip;  // bound of what flows back through time into h; infinity for none
  int64_t cut;  // nothing flows back through R
};

template <class Cell, class Storage, int D, int Warps, int TilesPerWarp, int KHeld>
struct BlockBackward : Head<Cell, Storage, D, Warps, TilesPerWarp> {
  using Base = Head<Cell, Storage, D, Warps, TilesPerWarp>;
  using typename Base::F, typename Base::Pair;
  using Base::G, Base::Gr, Base::S, Base::K, Base::Q;
  using Base::tiles, Base::padded, Base::dense, Base::place, Base::n, Base::rows;
  using Base::tile_of, Base::unit_of, Base::of_state;
  using Arguments = BackwardArguments<Storage>;
  using Gates = Left<Storage, tiles>;  // of one gate; those of R stand one after another
  static constexpr int k_tiles = at_least(Gr, 1) * Gates::k_tiles;
  using R = Right<Storage, TilesPerWarp, k_tiles, KHeld>;
  // Shared memory: the gates' gradients twice; weights; R's part per warp.
  static constexpr int gates_bytes = Gr * Gates::bytes;
  static constexpr int constants_bytes = K * padded * 4;
  static constexpr int shared_bytes =
      2 * gates_bytes + constants_bytes + (dense ? Warps * R::bytes_per_warp : 0);

  const Arguments& a;
  float* constants;
  float clip;
  float d_state[TilesPerWarp][S][4];
  float d_weight[TilesPerWarp][at_least(K, 1)][2];

  FLASHRNN_INLINE explicit BlockBackward(const Arguments& arguments)
      : Base(arguments), a(arguments), clip(float(a.clip)), d_weight{} {}

  FLASHRNN_INLINE void run() {
    auto* gates = static_cast<Operand*>(shared_memory());
    constants = reinterpret_cast<float*>(static_cast<char*>(shared_memory()) + 2 * gates_bytes);
    auto* rest = reinterpret_cast<Column*>(reinterpret_cast<char*>(constants) + constants_bytes);
    load_weights();
    this->load_states(d_state, a.d_last);
    R r;
    if constexpr (dense) {
      this->clear(gates, 2 * gates_bytes);
      r.load(rest + place.warp * (R::bytes_per_warp / int(sizeof(Column))), place,
             this->along_gates(a.r, 0, tile_of(0) * units_per_tile));
    }
    block_barrier();
    for (int t = rows.longest - 1; t >= 0; --t) {
      Operand* buffer = gates + t % 2 * (gates_bytes / int(sizeof(Operand)));
#pragma unroll
      for (int j = 0; j < TilesPerWarp; ++j) derive(t, j, buffer);
      float sum[TilesPerWarp][4] = {};
      if constexpr (dense) {
        block_barrier();
        const Operand* now = buffer + place.lane;
        if (a.cut == 0) r.template multiply<0>(sum, [now](int k) { return now[k * lanes]; });
      }
      pass_on(t, sum);
    }
    this->store_states(a.d_initial, d_state);
    if constexpr (K > 0) store_weights();
  }

  FLASHRNN_INLINE void load_weights() {
    for (int i = thread_index(); i < K * padded; i += Warps * lanes) {
      const int d = i % padded;
      constants[i] = d < D ? F::widen(a.weights[(i / padded * a.N + n) * D + d]) : 0.0f;
    }
  }

  // From the cotangents of the new states to those of the gates and, R apart, of the states.
  FLASHRNN_INLINE void derive(int t, int j, Operand* buffer) {
    Pair before[S][2], after[S][2], saved[at_least(Q, 1)][2], output[S][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) read(t, j, i, before, after, saved, output);
    float d_gate[G][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int unit = unit_of(j) + e % 2;
      const bool inside = rows.active(e / 2, t) && unit < D;
      const auto part = [&](const Pair(&p)[2]) {
        return e % 2 == 0 ? F::first(p[e / 2]) : F::second(p[e / 2]);
      };
      float state[S], next[S], save[at_least(Q, 1)], weight[at_least(K, 1)], d_next[S];
      float d_g[G], d_s[S], d_w[at_least(K, 1)];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        state[s] = part(before[s]);
        next[s] = part(after[s]);
        d_next[s] = d_state[j][s][e] + part(output[s]);
      }
#pragma unroll
      for (int k = 0; k < Q; ++k) save[k] = part(saved[k]);
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k] = constants[k * padded + (unit < padded ? unit : 0)];
      Cell::template backward<Lane>(state, next, weight, save, d_next, d_g, d_s, d_w);
#pragma unroll
      for (int g = 0; g < G; ++g) d_gate[g][e] = inside ? d_g[g] : 0.0f;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (inside) d_state[j][s][e] = d_s[s];
      }
#pragma unroll
      for (int k = 0; k < K; ++k) d_weight[j][k][e % 2] += inside ? d_w[k] : 0.0f;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Storage* to = a.d_gates + rows.at[i] * a.d_gates_b + rows.time(i, t) * a.d_gates_t +
                      g * a.d_gates_g + n * a.d_gates_n;
        store_pair<Storage, D>(to, unit_of(j), rows.active(i, t), d_gate[g][2 * i],
                               d_gate[g][2 * i + 1]);
      }
      if (Cell::recurrent_slot[g] >= 0 && tile_of(j) < tiles) {
        Operand* to = buffer + Cell::recurrent_slot[g] * (Gates::bytes / int(sizeof(Operand)));
        Gates::put(to, tile_of(j), place.lane, {d_gate[g][0], d_gate[g][1]},
                   {d_gate[g][2], d_gate[g][3]});
      }
    }
  }

  FLASHRNN_INLINE void read(int t, int j, int i, Pair (&before)[S][2], Pair (&after)[S][2],
                            Pair (&saved)[at_least(Q, 1)][2], Pair (&output)[S][2]) const {
    const bool inside = rows.active(i, t);
    const int64_t time = rows.time(i, t);
    const int unit = unit_of(j);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Storage* at =
          a.states + s * a.states_s + rows.at[i] * a.states_b + time * a.states_t + n * a.states_n;
      after[s][i] = before[s][i] = output[s][i] = Pair{};
      if (Cell::reads_next[s]) after[s][i] = load_pair<Storage, D>(at, unit, inside);
      if (Cell::reads_state[s]) {
        const Storage* earlier = rows.reverse ? at + a.states_t : at - a.states_t;
        before[s][i] =
            load_pair<Storage, D>(t == 0 ? a.initial + of_state(s, i) : earlier, unit, inside);
      }
      if (a.d_states != nullptr) {
        output[s][i] = load_pair<Storage, D>(a.d_states + s * a.d_states_s +
                                                 rows.at[i] * a.d_states_b + time * a.d_states_t +
                                                 n * a.d_states_n,
                                             unit, inside);
      }
    }
#pragma unroll
    for (int k = 0; k < Q; ++k) {
      const Storage* at = a.saved + this->of_saved(t, i, k);
      saved[k][i] = load_pair<Storage, D>(at, unit, inside);
    }
  }

  // What R carries back is added to the cotangent of h, which is clipped.
  FLASHRNN_INLINE void pass_on(int t, const float (&sum)[TilesPerWarp][4]) {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float d_h = d_state[j][0][e] + sum[j][e];
        const float clipped = math::minimum<Lane>(math::maximum<Lane>(d_h, -clip), clip);
        if (rows.active(e / 2, t)) d_state[j][0][e] = clipped;
      }
    }
  }

  // Summed over the rows of the block: those of a lane, then the lanes with the same units.
  FLASHRNN_INLINE void store_weights() {
#pragma unroll
    for (int j = 0; j < TilesPerWarp; ++j) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float total = d_weight[j][k][e];
#pragma unroll
          for (int distance = 4; distance < lanes; distance *= 2) {
            total += from_lane(total, distance);
          }
          const int unit = unit_of(j) + e;
          if (place.row == 0 && unit < D) {
            a.d_weights[((block_x() * K + k) * a.N + n) * D + unit] = total;
          }
        }
      }
    }
  }
};

}  // namespace flashrnn
