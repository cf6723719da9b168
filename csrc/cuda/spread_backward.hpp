// The backward recurrence of any cell, a head spread over several blocks: some tiles of 16 rows of the
// batch, last step first. The blocks exchange the gradients of the gates that R feeds; each multiplies
// all of them by its units' part of R, which gives the cotangent of its units of h.
#pragma once

#include "cuda/block_backward.hpp"
#include "cuda/spread.hpp"

namespace flashrnn {

template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged>
struct BackwardShape {
  static_assert(Tiling::units_per_group == 8, "backward, units are in eights");
  // Of one gate; those of R stand one after another.
  static constexpr int k_per_gate = Left<Storage, ceil_div(D, units_per_tile)>::k_tiles;
  static constexpr int columns = Cell::recurrent > 0 ? Tiling::groups : 0;
  using Spread = flashrnn::Spread<Cell, Storage, D, Tiling, Exchanged, columns,
                                  Cell::recurrent * k_per_gate, Cell::weights>;
};

// A tile of rows: the cotangents of its states, and its part of each step.
template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged>
struct BackwardTile : BackwardShape<Cell, Storage, D, Tiling, Exchanged>::Spread {
  using Shape = BackwardShape<Cell, Storage, D, Tiling, Exchanged>;
  using Base = typename Shape::Spread;
  using typename Base::F, typename Base::R, typename Base::UnitsOf, typename Base::Sums;
  using Base::G, Base::Gr, Base::S, Base::K, Base::Q, Base::dense, Base::place, Base::B, Base::N,
      Base::n, Base::rows, Base::per_lane, Base::elements, Base::groups_per_warp;
  using Base::owns, Base::unit_of, Base::in_block_of, Base::constants;
  using Arguments = Exchanging<BackwardArguments<Storage>>;

  const Arguments& a;
  float clip;
  float d_state[groups_per_warp][S][elements];
  float d_weight[groups_per_warp][at_least(K, 1)][per_lane];

  FLASHRNN_INLINE BackwardTile(const Arguments& arguments, int number)
      : Base(arguments, number, Gr), a(arguments), clip(float(a.clip)), d_weight{} {}

  FLASHRNN_INLINE void load_constants() {
    for (int i = thread_index(); i < K * Tiling::units; i += Base::threads) {
      const int row = i / Tiling::units, d = block_x() * Tiling::units + i % Tiling::units;
      constants[i] = d < D ? F::widen(a.weights[(row * a.N + n) * D + d]) : 0.0f;
    }
  }

  FLASHRNN_INLINE void load_r(R& r) const {
    const int first = this->warp_n * Base::columns_per_warp * units_per_tile;
    r.load(this->own_r(), place,
           this->along_gates(a.r, this->warp_k * Base::k_per_warp * F::k_units,
                             block_x() * Tiling::units + first));
  }

  // One more than there are, which takes in what the first step sent.
  template <class Step>
  static FLASHRNN_INLINE void each_step(int longest, Step&& take) {
    for (int t = longest - 1; t >= -1; --t) take(t);
  }

  FLASHRNN_INLINE void begin() { this->load_states(d_state, a.d_last); }

  // What step t + 1 sent, and what step t sends; each where this tile has that step.
  FLASHRNN_INLINE void step(int t, const R& r) {
    if (t + 1 < rows.longest) {
      if constexpr (dense) {
        if (a.cut == 0) this->multiply(r);
      }
#pragma unroll
      for (int i = 0; i < groups_per_warp; ++i) {
        if (owns(i)) pass_on(t + 1, i);
      }
    }
    if (t < 0 || !this->has(t)) return;
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
      if (owns(i)) derive(t, i);
    }
    if constexpr (dense) {
      if (a.cut == 0) this->exchange.publish();
    }
  }

  FLASHRNN_INLINE void end() const {
    this->store_states(a.d_initial, d_state);
    if constexpr (K > 0) {
      if (rows.first < B) store_weights();
    }
  }

  // From the cotangents of the new states to those of the gates and, R apart, of the states.
  FLASHRNN_INLINE void derive(int t, int i) {
    UnitsOf before[S][2], after[S][2], saved[at_least(Q, 1)][2], output[S][2];
#pragma unroll
    for (int row = 0; row < 2; ++row) read(t, i, row, before, after, saved, output);
    float d_gate[G][elements];
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      const int row = e / per_lane, u = e % per_lane, unit = unit_of(i) + u;
      const bool inside = rows.active(row, t) && unit < D;
      float state[S], next[S], save[at_least(Q, 1)], weight[at_least(K, 1)], d_next[S];
      float d_g[G], d_s[S], d_w[at_least(K, 1)];
#pragma unroll
      for (int s = 0; s < S; ++s) {
        state[s] = before[s][row][u];
        next[s] = after[s][row][u];
        d_next[s] = d_state[i][s][e] + output[s][row][u];
      }
#pragma unroll
      for (int k = 0; k < Q; ++k) save[k] = saved[k][row][u];
#pragma unroll
      for (int k = 0; k < K; ++k)
        weight[k] = constants[k * Tiling::units + unit - block_x() * Tiling::units];
      Cell::template backward<Lane>(state, next, weight, save, d_next, d_g, d_s, d_w);
#pragma unroll
      for (int g = 0; g < G; ++g) d_gate[g][e] = inside ? d_g[g] : 0.0f;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        if (inside) d_state[i][s][e] = d_s[s];
      }
#pragma unroll
      for (int k = 0; k < K; ++k) d_weight[i][k][u] += inside ? d_w[k] : 0.0f;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        Storage* to = a.d_gates + rows.at[row] * a.d_gates_b + rows.time(row, t) * a.d_gates_t +
                      g * a.d_gates_g + n * a.d_gates_n;
        UnitsOf::store(to, unit_of(i), rows.active(row, t), d_gate[g] + row * per_lane);
      }
      if constexpr (dense) {
        const int slot = Cell::recurrent_slot[g];
        if (slot >= 0 && a.cut == 0) this->send(slot * Shape::k_per_gate, i, d_gate[g]);
      }
    }
  }

  FLASHRNN_INLINE void read(int t, int i, int row, UnitsOf (&before)[S][2], UnitsOf (&after)[S][2],
                            UnitsOf (&saved)[at_least(Q, 1)][2], UnitsOf (&output)[S][2]) const {
    const bool inside = rows.active(row, t);
    const int64_t time = rows.time(row, t);
    const int unit = unit_of(i);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Storage* at = a.states + s * a.states_s + rows.at[row] * a.states_b +
                          time * a.states_t + n * a.states_n;
      if (Cell::reads_next[s]) after[s][row] = UnitsOf::load(at, unit, inside);
      if (Cell::reads_state[s]) {
        const Storage* earlier = rows.reverse ? at + a.states_t : at - a.states_t;
        before[s][row] =
            UnitsOf::load(t == 0 ? a.initial + this->of_state(s, row) : earlier, unit, inside);
      }
      if (a.d_states != nullptr) {
        output[s][row] = UnitsOf::load(a.d_states + s * a.d_states_s + rows.at[row] * a.d_states_b +
                                           time * a.d_states_t + n * a.d_states_n,
                                       unit, inside);
      }
    }
#pragma unroll
    for (int k = 0; k < Q; ++k)
      saved[k][row] = UnitsOf::load(a.saved + this->of_saved(t, row, k), unit, inside);
  }

  // What R carries back is added to the cotangent of h, which is clipped.
  FLASHRNN_INLINE void pass_on(int t, int i) {
    Sums sum{};
    if constexpr (dense) {
      if (a.cut == 0) sum = this->total(in_block_of(i));
    }
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      const float d_h = d_state[i][0][e] + sum.of[e];
      const float clipped = math::minimum<Lane>(math::maximum<Lane>(d_h, -clip), clip);
      if (rows.active(e / per_lane, t)) d_state[i][0][e] = clipped;
    }
  }

  // Summed over the tile's rows: those of a lane, then the lanes with the same units.
  FLASHRNN_INLINE void store_weights() const {
    const int tile = rows.first / rows_per_block;
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
      if (!owns(i)) continue;
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int u = 0; u < per_lane; ++u) {
          float total = d_weight[i][k][u];
#pragma unroll
          for (int distance = 4; distance < lanes; distance *= 2) {
            total += from_lane(total, distance);
          }
          const int unit = unit_of(i) + u;
          if (place.row == 0 && unit < D) a.d_weights[((tile * K + k) * a.N + n) * D + unit] = total;
        }
      }
    }
  }
};

template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged>
using SpreadBackward =
    InFlight<BackwardTile<Cell, Storage, D, Tiling, Exchanged>, Tiling::in_flight>;

}  // namespace flashrnn
