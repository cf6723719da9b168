// A layer's backward pass: the recurrence, and behind it the gradients of input and weights, a piece
// of the sequence at a time, last piece first, so that the gradients of the gates never exist for
// the whole sequence. Compiled once for all cells, as layer_forward.hpp is.
#pragma once

#include <algorithm>

#include "cpu/backward.hpp"
#include "cpu/weight_gradients.hpp"

namespace flashrnn {

// The gates [gate, gate + count) are the ones that stand at [slot, slot + count) of a weight.
struct Run {
  int64_t gate, slot, count;
};

// Mirrored by flashrnn/runtime/surround.py; see LayerForwardArguments.
template <class Real>
struct LayerBackwardArguments {
  BackwardArguments<Real> recurrence;  // of the whole sequence; d_gates null if nobody asks
  void (*run)(const BackwardArguments<Real>*);
  const Real* x;  // [B, T, I]
  int64_t x_b, x_t, I;
  const Real* w;  // [columns, I] contiguous
  Real* d_x;  // [B, T, I], or null if nobody asks; likewise the next four
  int64_t d_x_b, d_x_t;
  Real *d_w, *d_r, *d_bias, *d_weights;  // [columns, I], [G_r, N, D, P], [G, N, D], [K, N, D]
  int64_t gates, states, weights, steps;  // steps of a piece
  const Run* input;  // where the input's gates stand, and R's
  int64_t inputs;
  const Run* recurrent;
  int64_t recurrents;
  Real* workspace;
};

template <class S>
struct LayerBackward {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  using P = Product<S>;
  static constexpr int W = S::lanes;
  static constexpr int64_t together = 16;    // rows of W packed at a time
  static constexpr int64_t bias_rows = 256;  // summed before they meet the total

  const LayerBackwardArguments<Real>& a;
  int64_t B, N, D, row;  // row: distance of two rows of gate gradients
  Columns input;
  Workspace<Real> space;
  WeightGradients<S, LayerBackwardArguments<Real>> weights;
  Real *packed_w, *d_gates, *carried, *piece_weights, *zeros;
  Real** d_x_rows;

  explicit LayerBackward(const LayerBackwardArguments<Real>& arguments, int64_t* needed = nullptr)
      : a(arguments),
        B(a.recurrence.B),
        N(a.recurrence.N),
        D(a.recurrence.D),
        row(a.gates * N * D + line<Real>),  // rows a power of two apart would share cache sets
        input(columns_of_input()),
        space{a.workspace},
        weights(a, input, space) {
    const int64_t rows = a.steps * B;
    packed_w = space.take(a.d_x != nullptr ? P::packed_numbers(input.total, a.I) : 0);
    d_gates = space.take(rows * row);
    carried = space.take(a.states * B * N * D);
    piece_weights = space.take(B * a.weights * N * D);
    zeros = space.take(std::max(a.I, N * D));
    d_x_rows = reinterpret_cast<Real**>(space.take(rows * pointer<Real>));
    if (needed != nullptr) *needed = space.used;
  }

  Columns columns_of_input() const {
    Columns columns;
    for (int64_t i = 0; i < a.inputs; ++i)
      columns.add(a.input[i].gate * N * D, a.input[i].count * N * D);
    return columns;
  }

  void run() const {
    BackwardArguments<Real> piece = a.recurrence;
    if (a.d_x != nullptr) pack_w();
    std::fill_n(zeros, std::max(a.I, N * D), Real{0});
    if (a.d_bias != nullptr) std::fill_n(a.d_bias, a.gates * N * D, Real{0});
    std::fill_n(a.d_weights, a.weights * N * D, Real{0});
    piece.d_weights = piece_weights;
    if (a.recurrence.d_gates == nullptr) {
      piece.ordered = 1;
      piece.d_gates = d_gates;
      piece.d_gates_t = B * row;
      piece.d_gates_b = row;
      piece.d_gates_g = N * D;
      piece.d_gates_n = D;
    }
    for (int64_t end = a.recurrence.T; end > 0; end -= piece.T) {
      piece.T = (end - 1) % a.steps + 1;
      piece.order.start = end - piece.T;
      piece.d_initial = piece.order.start > 0 ? carried : a.recurrence.d_initial;
      a.run(&piece);
      piece.packed = 1;
      piece.d_last = carried;
      point(piece);
      const int64_t rows = piece.T * B;
      if (a.d_x != nullptr) input_gradient(rows);
      if (a.d_bias != nullptr) add_bias(rows);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < a.weights * N * D; ++i)
          a.d_weights[i] += piece_weights[b * a.weights * N * D + i];
      weights.add_piece(rows, end < a.recurrence.T);
    }
    weights.finish();
  }

  // Where each row of this piece begins; a row that has ended meets zeros.
  void point(const BackwardArguments<Real>& piece) const {
    const Order& order = piece.order;
    for (int64_t t = 0, r = 0; t < piece.T; ++t)
      for (int64_t b = 0; b < B; ++b, ++r) {
        const int64_t at = order.position(b, t);
        const bool ended = order.ended(b, 1, t);
        weights.x_rows[r] = ended ? zeros : a.x + at * a.x_t + b * a.x_b;
        d_x_rows[r] = a.d_x + at * a.d_x_t + b * a.d_x_b;
        weights.d_rows[r] =
            piece.d_gates + (piece.ordered ? t : at) * piece.d_gates_t + b * piece.d_gates_b;
        if (ended)
          weights.h_rows[r] = zeros;
        else if (order.start + t > 0)
          weights.h_rows[r] =
              piece.states + order.position(b, t - 1) * piece.states_t + b * piece.states_b;
        else
          weights.h_rows[r] = piece.initial != nullptr ? piece.initial + b * N * D : zeros;
      }
  }

  template <class Body>
  void each(int64_t items, Body&& body) const {
    parallel_for(a.recurrence.region, a.recurrence.threads, items, body);
  }

  // W's rows are the contraction of d_x = d_gates W; a run of gates at a time is contiguous there.
  void pack_w() const {
    each((input.total + together - 1) / together, [&](int64_t i, int64_t) {
      for (int64_t j = i * together; j < std::min((i + 1) * together, input.total); ++j) {
        int64_t first = 0, k = 0;
        for (; j >= first + input.pieces[k].length; ++k) first += input.pieces[k].length;
        P::pack_row(a.w + j * a.I, packed_w + P::packed_numbers(first, a.I), a.I,
                    input.pieces[k].length, j - first);
      }
    });
  }

  void input_gradient(int64_t rows) const {
    const int64_t block = P::rows_of_block(rows, a.recurrence.threads);
    each((rows + block - 1) / block, [&](int64_t i, int64_t) {
      const int64_t r = i * block, count = std::min(block, rows - r);
      const Real* from[P::block_rows];
      int64_t first = 0;
      for (const auto& piece : input.pieces) {
        for (int64_t j = 0; j < count; ++j) from[j] = weights.d_rows[r + j] + piece.offset;
        P::multiply(from, packed_w + P::packed_numbers(first, a.I), d_x_rows + r, count,
                    piece.length, a.I, first > 0);
        first += piece.length;
      }
    });
  }

  void add_bias(int64_t rows) const {
    const int64_t columns = a.gates * N * D;
    each(P::panels(columns), [&](int64_t p, int64_t) {
      for (int64_t c = p * P::panel; c < std::min((p + 1) * P::panel, columns); c += W) {
        Vec all = S::load(a.d_bias + c, columns - c);
        for (int64_t first = 0; first < rows; first += bias_rows) {
          const int64_t end = std::min(first + bias_rows, rows);
          Vec sum[4] = {};
          for (int64_t r = first; r < end; ++r)
            sum[r % 4] += S::load(weights.d_rows[r] + c, columns - c);
          all += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
        S::store(a.d_bias + c, all, columns - c);
      }
    });
  }

};

}  // namespace flashrnn
