// A layer's backward pass: the recurrence, and behind it the gradients of input and weights, a piece
// of the sequence at a time, last piece first, so that the gradients of the gates never exist for
// the whole sequence. Compiled once for all cells, as layer_forward.hpp is.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/backward.hpp"
#include "cpu/product.hpp"

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
  static constexpr int64_t chunk = 5 * P::depth;  // rows whose packed operands are multiplied
  static constexpr int64_t together = 16;         // rows packed at a time
  static constexpr int64_t bias_rows = 256;       // summed before they meet the total

  // What lies in one row of gate gradients: pieces [offset, offset + length) side by side.
  struct Columns {
    struct Piece {
      int64_t offset, length;
      bool operator==(const Piece&) const = default;
    };
    std::vector<Piece> pieces;
    int64_t total = 0;

    void add(int64_t offset, int64_t length) {
      if (!pieces.empty() && pieces.back().offset + pieces.back().length == offset)
        pieces.back().length += length;
      else
        pieces.push_back({offset, length});
      total += length;
    }
    bool operator==(const Columns& other) const { return pieces == other.pieces; }
  };

  const LayerBackwardArguments<Real>& a;
  int64_t B, N, D, row, recurrent_columns = 0;  // row: distance of two rows of gate gradients
  Real *packed_w, *d_gates, *packed, *grouped, *sums_w, *sums_r, *gathered, *carried,
      *piece_weights, *zeros;
  const Real **x_rows, **h_rows, **d_rows;
  Real** d_x_rows;
  Columns input;

  explicit LayerBackward(const LayerBackwardArguments<Real>& arguments, int64_t* needed = nullptr)
      : a(arguments), B(a.recurrence.B), N(a.recurrence.N), D(a.recurrence.D) {
    for (int64_t i = 0; i < a.inputs; ++i)
      input.add(a.input[i].gate * N * D, a.input[i].count * N * D);
    for (int64_t i = 0; i < a.recurrents; ++i) recurrent_columns += a.recurrent[i].count * D;
    const int64_t rows = a.steps * B, most = std::max(input.total, recurrent_columns);
    row = a.gates * N * D + line<Real>;  // rows a power of two apart would share cache sets
    Workspace<Real> space{a.workspace};
    packed_w = space.take(a.d_x != nullptr ? P::packed_numbers(input.total, a.I) : 0);
    d_gates = space.take(rows * row);
    packed = space.take(P::packed_numbers(chunk, most));
    grouped = space.take(P::grouped_numbers(chunk, std::max(a.I, D)));
    sums_w = space.take(a.d_w != nullptr ? a.I * sums_row(input.total) : 0);
    sums_r = space.take(a.d_r != nullptr ? N * D * sums_row(recurrent_columns) : 0);
    gathered = space.take(a.recurrence.threads * most);
    carried = space.take(a.states * B * N * D);
    piece_weights = space.take(B * a.weights * N * D);
    zeros = space.take(std::max(a.I, N * D));
    x_rows = reinterpret_cast<const Real**>(space.take(rows * pointer<Real>));
    h_rows = reinterpret_cast<const Real**>(space.take(rows * pointer<Real>));
    d_rows = reinterpret_cast<const Real**>(space.take(rows * pointer<Real>));
    d_x_rows = reinterpret_cast<Real**>(space.take(rows * pointer<Real>));
    if (needed != nullptr) *needed = space.used;
  }

  // Distance of two rows of sums: not a power of two, as above.
  static int64_t sums_row(int64_t columns) { return columns + line<Real>; }

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
      weight_gradients(rows, end < a.recurrence.T);
    }
    transpose_sums();
  }

  // Where each row of this piece begins; a row that has ended meets zeros.
  void point(const BackwardArguments<Real>& piece) const {
    const Order& order = piece.order;
    for (int64_t t = 0, r = 0; t < piece.T; ++t)
      for (int64_t b = 0; b < B; ++b, ++r) {
        const int64_t at = order.position(b, t);
        const bool ended = order.ended(b, 1, t);
        x_rows[r] = ended ? zeros : a.x + at * a.x_t + b * a.x_b;
        d_x_rows[r] = a.d_x + at * a.d_x_t + b * a.d_x_b;
        d_rows[r] =
            piece.d_gates + (piece.ordered ? t : at) * piece.d_gates_t + b * piece.d_gates_b;
        if (ended)
          h_rows[r] = zeros;
        else if (order.start + t > 0)
          h_rows[r] = piece.states + order.position(b, t - 1) * piece.states_t + b * piece.states_b;
        else
          h_rows[r] = piece.initial != nullptr ? piece.initial + b * N * D : zeros;
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
    each((rows + P::block_rows - 1) / P::block_rows, [&](int64_t i, int64_t) {
      const int64_t r = i * P::block_rows, count = std::min(P::block_rows, rows - r);
      const Real* from[P::block_rows];
      int64_t first = 0;
      for (const auto& piece : input.pieces) {
        for (int64_t j = 0; j < count; ++j) from[j] = d_rows[r + j] + piece.offset;
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
          for (int64_t r = first; r < end; ++r) sum[r % 4] += S::load(d_rows[r] + c, columns - c);
          all += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
        S::store(a.d_bias + c, all, columns - c);
      }
    });
  }

  void weight_gradients(int64_t rows, bool add) const {
    for (int64_t r = 0; r < rows; r += chunk) {
      const int64_t count = std::min(chunk, rows - r);
      const Columns* held = nullptr;  // what the packed operand is
      if (a.d_w != nullptr) {
        pack(input, r, count);
        held = &input;
        outer(x_rows + r, 0, a.I, sums_w, input.total, count, add || r > 0);
      }
      for (int64_t n = 0; a.d_r != nullptr && n < N; ++n) {
        Columns columns;
        for (int64_t i = 0; i < a.recurrents; ++i)
          for (int64_t g = 0; g < a.recurrent[i].count; ++g)
            columns.add(((a.recurrent[i].gate + g) * N + n) * D, D);
        if (held == nullptr || !(columns == *held)) pack(columns, r, count);
        held = nullptr;
        outer(h_rows + r, n * D, D, sums_r + n * D * sums_row(columns.total), columns.total, count,
              add || r > 0);
      }
    }
  }

  // Rows [first, first + count) of gate gradients become the packed operand of `outer`.
  void pack(const Columns& columns, int64_t first, int64_t count) const {
    each((count + together - 1) / together, [&](int64_t i, int64_t worker) {
      for (int64_t k = i * together; k < std::min((i + 1) * together, count); ++k) {
        const Real* from = d_rows[first + k] + columns.pieces[0].offset;
        if (columns.pieces.size() > 1) {
          Real* to = gathered + worker * std::max(input.total, recurrent_columns);
          from = to;
          for (const auto& piece : columns.pieces) {
            std::memcpy(to, d_rows[first + k] + piece.offset, piece.length * sizeof(Real));
            to += piece.length;
          }
        }
        P::pack_row(from, packed, columns.total, count, k);
      }
    });
  }

  // sums[m, n] += (or =) sum over count rows of rows[offset + m] times the packed operand.
  void outer(const Real* const* rows, int64_t offset, int64_t m, Real* sums, int64_t n,
             int64_t count, bool add) const {
    each((count + together - 1) / together, [&](int64_t i, int64_t) {
      const int64_t first = i * together, some = std::min(together, count - first);
      const Real* from[together];
      for (int64_t j = 0; j < some; ++j) from[j] = rows[first + j] + offset;
      for (int64_t g = 0; g < P::groups(m); ++g)
        P::pack_group(from, grouped, m, count, first, some, g);
    });
    const int64_t panels = P::panels(n), groups = P::groups(m);
    const int64_t parts = std::min(groups, (4 * a.recurrence.threads + panels - 1) / panels);
    each(panels * parts, [&](int64_t i, int64_t) {
      const int64_t part = i % parts;
      P::multiply_grouped(grouped, packed, sums, sums_row(n), m, count, n, i / parts,
                          part * groups / parts, (part + 1) * groups / parts, add);
    });
  }

  // The sums are [I, columns] and [N, P, G_r D], their rows apart; the weights have the transposed
  // order.
  void transpose_sums() const {
    const bool some = a.recurrence.T * B > 0;
    if (a.d_w != nullptr && !some) std::fill_n(a.d_w, input.total * a.I, Real{0});
    if (a.d_r != nullptr && !some) std::fill_n(a.d_r, N * D * recurrent_columns, Real{0});
    if (a.d_w != nullptr && some)
      each((a.I + W - 1) / W, [&](int64_t i, int64_t) {
        const int64_t apart = sums_row(input.total);
        transpose<S, false>(sums_w + i * W * apart, apart, a.d_w + i * W, a.I, a.I - i * W,
                            input.total);
      });
    if (a.d_r != nullptr && some)
      for (int64_t n = 0; n < N; ++n)
        for (int64_t g = 0; g < recurrent_columns / D; ++g)
          each((D + W - 1) / W, [&](int64_t i, int64_t) {
            const int64_t apart = sums_row(recurrent_columns);
            transpose<S, false>(sums_r + (n * D + i * W) * apart + g * D, apart,
                                a.d_r + (g * N + n) * D * D + i * W, D, D - i * W, D);
          });
  }
};

}  // namespace flashrnn
