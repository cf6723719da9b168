// The pointwise part of the forward recurrence: the cell's equations on complete sums, for a few
// vectors together where there are as many (several.hpp), of one row or of several.
#pragma once

#include "cpu/several.hpp"

namespace flashrnn {

// V: vectors of a panel. alone: there is one row, whose panels are taken together. Item: a work item
// of forward.hpp, which knows where numbers lie.
template <class Cell, class S, int V, bool alone, class Item>
struct Pointwise {
  static constexpr int W = S::lanes;
  // Two of a cell with many values, which registers could not hold for four.
  static constexpr int together = Cell::gates + Cell::states > 6 ? 2 : 4;
  static constexpr int v_together = alone || V > together ? together : V;
  static constexpr int b_together = alone ? 1 : together / v_together;

  template <int Rows, int Vectors>
  using Vecs = typename Several<S, Rows * Vectors>::Vec;

  const Item& item;

  // All rows of the panels [first, last), whose sums are complete.
  FLASHRNN_INLINE void panels(int64_t first, int64_t last) const {
    if constexpr (Cell::only_saved)
      if (item.f.a.saved == nullptr) return panels<false>(first, last);
    panels<true>(first, last);
  }

  // The cell's equations for some vectors of a few rows, and where the results go.
  template <int Rows, int Vectors, bool saving = true>
  FLASHRNN_INLINE void finish(const Vecs<Rows, Vectors> (&gate)[Cell::gates], int64_t b,
                              int64_t d) const {
    const auto& f = item.f;
    const auto& a = f.a;
    Vecs<Rows, Vectors> state[Cell::states], next[Cell::states];
    Vecs<Rows, Vectors> weight[Cell::weights > 0 ? Cell::weights : 1];
    Vecs<Rows, Vectors> save[Cell::saved > 0 ? Cell::saved : 1];
    each<Rows, Vectors>(b, d, [&](auto i, int64_t row, int64_t unit) __attribute__((always_inline)) {
      unroll<Cell::states>([&](auto s) __attribute__((always_inline)) {
        state[s].parts[i] = S::load(item.state_in(s) + row * f.row + unit);
      });
      unroll<Cell::weights>([&](auto k) __attribute__((always_inline)) {
        weight[k].parts[i] = S::load(f.weights + (item.n * Cell::weights + k) * f.width + unit);
      });
    });
    Cell::template forward<Several<S, Rows * Vectors>>(gate, state, weight, next, save);
    each<Rows, Vectors>(b, d, [&](auto i, int64_t row, int64_t unit) __attribute__((always_inline)) {
      const auto& place = item.places()[row];
      unroll<Cell::states>([&](auto s) __attribute__((always_inline)) {
        S::store(item.state_out(s) + row * f.row + unit, next[s].parts[i]);
        if (s < a.states_kept)
          S::store(place.states + s * a.states_s + unit, next[s].parts[i], a.D - unit);
      });
      if (!saving || place.saved == nullptr) return;
      typename S::Real* const saved = place.saved + unit * Cell::saved;
      unroll<Cell::saved>([&](auto k) __attribute__((always_inline)) {
        S::store(saved + k * W, save[k].parts[i]);
      });
    });
  }

 private:
  // saving: whether there may be somewhere to save to.
  template <bool saving>
  __attribute__((noinline)) void panels(int64_t first, int64_t last) const {
    const int64_t panel = V * W, D = item.f.a.D;
    const int64_t from = first * panel, to = last * panel < D ? last * panel : D;
    const int64_t base = Item::begin(first);
    int64_t b = 0;
    for (; b + b_together <= item.rows; b += b_together) {
      int64_t d = from;
      if (!item.f.a.order.some_ended(item.b0 + b, b_together, item.t))
        for (; d + (v_together - 1) * W < to; d += v_together * W)
          group<b_together, v_together, saving>(b, d, base);
      if constexpr (!alone)
        for (int64_t i = b + b_together; i < b + 2 * b_together && i < item.rows; ++i)
          item.prefetch_results(i, from);
      if (d < to) one_by_one<saving>(b, b + b_together, d, to, base);
    }
    if (b < item.rows) one_by_one<saving>(b, item.rows, from, to, base);
  }

  // body(constant i, row, unit) for each vector.
  template <int Rows, int Vectors, class Body>
  static FLASHRNN_INLINE void each(int64_t b, int64_t d, Body&& body) {
    unroll<Rows * Vectors>([&](auto i) __attribute__((always_inline)) {
      body(i, b + i / Vectors, d + i % Vectors * W);
    });
  }

  template <int Rows, int Vectors, bool saving>
  FLASHRNN_INLINE void group(int64_t b, int64_t d, int64_t base) const {
    Vecs<Rows, Vectors> gate[Cell::gates];
    unroll<Cell::gates>([&](auto g) __attribute__((always_inline)) {
      constexpr int slot = Cell::recurrent_slot[g];
      each<Rows, Vectors>(b, d, [&](auto i, int64_t row, int64_t unit) __attribute__((always_inline)) {
        if constexpr (slot >= 0)
          gate[g].parts[i] = S::load(item.partial(row, slot) + unit - base);
        else
          gate[g].parts[i] = item.template input<g>(row, unit);
      });
    });
    finish<Rows, Vectors, saving>(gate, b, d);
  }

  template <bool saving>
  __attribute__((noinline)) void one_by_one(int64_t first, int64_t last, int64_t from, int64_t to,
                                            int64_t base) const {
    for (int64_t b = first; b < last; ++b)
      for (int64_t d = from; d < to; d += W)
        if (item.f.a.order.ended(item.b0 + b, 1, item.t))
          item.keep(b, d);
        else
          group<1, 1, saving>(b, d, base);
  }
};

}  // namespace flashrnn
