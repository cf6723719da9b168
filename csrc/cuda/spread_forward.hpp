// The forward recurrence of any cell, a head spread over several blocks: some tiles of 16 rows of the
// batch, all T steps. Wx of the next step is fetched before this one waits for the other blocks.
#pragma once

#include "cuda/block_forward.hpp"
#include "cuda/spread.hpp"

namespace flashrnn {

// Columns of R by group of units: of 8 units, one tile per gate; of 4, a tile per two gates, whose
// columns alternate, so that a lane has all gates of its units.
template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged>
struct ForwardShape {
  static constexpr int Gr = Cell::recurrent;
  static_assert(Tiling::units_per_group == 8 || Gr % 2 == 0, "units in fours take gates in pairs");
  static constexpr int per_group = Tiling::units_per_group == 8 ? Gr : Gr / 2;
  static constexpr int k_tiles = Gr > 0 ? Left<Storage, ceil_div(D, units_per_tile)>::k_tiles : 0;
  using Spread = flashrnn::Spread<Cell, Storage, D, Tiling, Exchanged, Tiling::groups * per_group,
                                  k_tiles, Cell::gates + Cell::weights>;
};

// A tile of rows: its states, and its part of each step.
template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged,
          bool Training>
struct ForwardTile : ForwardShape<Cell, Storage, D, Tiling, Exchanged>::Spread {
  using Shape = ForwardShape<Cell, Storage, D, Tiling, Exchanged>;
  using Base = typename Shape::Spread;
  using typename Base::F, typename Base::R, typename Base::UnitsOf, typename Base::Sums;
  using Base::G, Base::Gr, Base::S, Base::K, Base::Q, Base::dense, Base::place, Base::B, Base::N,
      Base::n, Base::rows, Base::per_lane, Base::elements, Base::groups_per_warp;
  using Base::owns, Base::unit_of, Base::in_block_of, Base::constants;
  using Arguments = Exchanging<ForwardArguments<Storage>>;
  static constexpr int Gw = Cell::inputs;

  const Arguments& a;
  float state[groups_per_warp][S][elements];
  UnitsOf fetched[groups_per_warp][at_least(Gw, 1)][2];

  FLASHRNN_INLINE ForwardTile(const Arguments& arguments, int number)
      : Base(arguments, number, 1), a(arguments) {}

  FLASHRNN_INLINE void load_constants() {
    for (int i = thread_index(); i < (G + K) * Tiling::units; i += Base::threads) {
      const int row = i / Tiling::units, d = block_x() * Tiling::units + i % Tiling::units;
      const Storage* from =
          row < G ? a.bias + (row * a.N + n) * D : a.weights + ((row - G) * a.N + n) * D;
      constants[i] = d < D ? F::widen(from[d]) : 0.0f;
    }
  }

  FLASHRNN_INLINE void load_r(R& r) const {
    const int first = this->warp_n * Base::columns_per_warp;
    const bool by_8 = Tiling::units_per_group == 8;
    constexpr int per_group = Shape::per_group;
    r.load(this->own_r(), place,
           this->template along_h<Base::columns_per_warp>(
               a.r, this->warp_k * Base::k_per_warp * F::k_units,
               [&](int j) {
                 const int m = (first + j) % per_group;
                 return by_8 ? m : 2 * m + place.row % 2;
               },
               [&](int j) {
                 const int group = (first + j) / per_group;
                 return block_x() * Tiling::units + group * Tiling::units_per_group +
                        (by_8 ? place.row : place.row / 2);
               }));
  }

  template <class Step>
  static FLASHRNN_INLINE void each_step(int longest, Step&& take) {
    for (int t = 0; t < longest; ++t) take(t);
  }

  FLASHRNN_INLINE void begin() {
    this->load_states(state, a.initial);
    if (rows.longest == 0) return;
    if constexpr (dense) {
      send_all();
      this->exchange.publish();
    }
    fetch(0);
  }

  FLASHRNN_INLINE void step(int t, const R& r) {
    if (!this->has(t)) return;
    UnitsOf wx[groups_per_warp][at_least(Gw, 1)][2];
    copy(wx);
    if (t + 1 < rows.longest) fetch(t + 1);
    if constexpr (dense) this->multiply(r);
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
      if (owns(i)) advance(t, i, wx[i]);
    }
    if constexpr (dense) {
      if (t + 1 == rows.longest) return;
      send_all();
      this->exchange.publish();
    }
  }

  FLASHRNN_INLINE void end() const { this->store_states(a.last, state); }

  FLASHRNN_INLINE void send_all() {
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
      if (owns(i)) this->send(0, i, state[i][0]);
    }
  }

  FLASHRNN_INLINE void fetch(int t) {
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
#pragma unroll
      for (int g = 0; g < Gw; ++g) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const Storage* from = a.wx + int64_t{unknown(rows.at[row])} * a.wx_b +
                                rows.time(row, t) * a.wx_t + g * a.wx_g + n * a.wx_n;
          fetched[i][g][row] = UnitsOf::load(from, unit_of(i), owns(i) && rows.active(row, t));
        }
      }
    }
  }

  FLASHRNN_INLINE void copy(UnitsOf (&wx)[groups_per_warp][at_least(Gw, 1)][2]) const {
#pragma unroll
    for (int i = 0; i < groups_per_warp; ++i) {
#pragma unroll
      for (int g = 0; g < Gw; ++g) {
        wx[i][g][0] = fetched[i][g][0];
        wx[i][g][1] = fetched[i][g][1];
      }
    }
  }

  // One step of group i.
  FLASHRNN_INLINE void advance(int t, int i, const UnitsOf (&wx)[at_least(Gw, 1)][2]) {
    Sums sum[at_least(Shape::per_group, 1)];
    if constexpr (dense) {
#pragma unroll
      for (int m = 0; m < Shape::per_group; ++m)
        sum[m] = this->total(in_block_of(i) * Shape::per_group + m);
    }
    float next[S][elements], save[at_least(Q, 1)][elements];
#pragma unroll
    for (int e = 0; e < elements; ++e) {
      const int row = e / per_lane, u = e % per_lane, unit = unit_of(i) + u;
      const float* own = constants + unit - block_x() * Tiling::units;
      float gate[G], before[S], weight[at_least(K, 1)], after[S], kept[at_least(Q, 1)];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const int w = Cell::input_slot[g], slot = Cell::recurrent_slot[g];
        gate[g] = own[g * Tiling::units];
        if (w >= 0) gate[g] += wx[at_least(w, 0)][row][u];
        if (slot >= 0) {
          const int m = per_lane == 2 ? slot : slot / 2, column = per_lane == 2 ? u : slot % 2;
          gate[g] += sum[at_least(m, 0)].of[2 * row + at_least(column, 0)];
        }
      }
#pragma unroll
      for (int k = 0; k < K; ++k) weight[k] = own[(G + k) * Tiling::units];
#pragma unroll
      for (int s = 0; s < S; ++s) before[s] = state[i][s][e];
      Cell::template forward<Lane>(gate, before, weight, after, kept);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        next[s][e] = after[s];
        if (rows.active(row, t) && unit < D) state[i][s][e] = after[s];
      }
      if constexpr (Training) {
#pragma unroll
        for (int k = 0; k < Q; ++k) save[k][e] = kept[k];
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool inside = rows.active(row, t);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        Storage* to = a.states + s * a.states_s + int64_t{unknown(rows.at[row])} * a.states_b +
                      rows.time(row, t) * a.states_t + n * a.states_n;
        UnitsOf::store(to, unit_of(i), inside, next[s] + row * per_lane);
      }
      if constexpr (Training) {
#pragma unroll
        for (int k = 0; k < Q; ++k) {
          UnitsOf::store(a.saved + this->of_saved(t, row, k), unit_of(i), inside,
                         save[k] + row * per_lane);
        }
      }
    }
  }
};

template <class Cell, class Storage, int D, class Tiling, template <int, int> class Exchanged,
          bool Training>
using SpreadForward =
    InFlight<ForwardTile<Cell, Storage, D, Tiling, Exchanged, Training>, Tiling::in_flight>;

}  // namespace flashrnn
