// The gradients of a layer's weights: sums over rows of the gates' gradients times what the weights
// met, x or the h before. layer_backward.hpp hands over a piece of the sequence at a time.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/product.hpp"

namespace flashrnn {

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

// Arguments: those of the layer.
template <class S, class Arguments>
struct WeightGradients {
  using Real = typename S::Real;
  using P = Product<S>;
  static constexpr int W = S::lanes;
  static constexpr int64_t chunk = 5 * P::depth;  // rows whose packed operands are multiplied
  static constexpr int64_t together = 16;         // rows packed at a time
  // Small sums exist several times, each of a part of the rows and computed by one thread, which
  // keeps to its own caches and waits for nobody. As many for any number of threads, as bits are.
  static constexpr int64_t most_lanes = 4, lane_bytes = 256 * 1024, fewest_rows = 1024;

  const Arguments& a;
  const Columns& input;  // the gates that have inputs
  int64_t N, D, recurrent_columns = 0;
  int64_t lanes, w_numbers, r_numbers;      // sums: how many times, numbers of each
  int64_t packed_numbers, grouped_numbers;  // of a worker
  Real *packed, *grouped, *sums_w, *sums_r, *gathered;
  const Real **x_rows, **h_rows, **d_rows;  // of a piece: where each row begins

  WeightGradients(const Arguments& arguments, const Columns& input, Workspace<Real>& space)
      : a(arguments), input(input), N(a.recurrence.N), D(a.recurrence.D) {
    for (int64_t i = 0; i < a.recurrents; ++i) recurrent_columns += a.recurrent[i].count * D;
    const int64_t rows = a.steps * a.recurrence.B, most = most_columns();
    w_numbers = round_up(a.d_w != nullptr ? a.I * sums_row(input.total) : 0, line<Real>);
    r_numbers = round_up(a.d_r != nullptr ? N * D * sums_row(recurrent_columns) : 0, line<Real>);
    const bool small = std::max(w_numbers, r_numbers) * int64_t{sizeof(Real)} <= lane_bytes;
    lanes = small && all_rows() >= fewest_rows ? most_lanes : 1;
    const int64_t workers = lanes > 1 ? std::min(lanes, a.recurrence.threads) : 1;
    packed_numbers = P::packed_numbers(chunk, most);
    packed = space.take(workers * packed_numbers);
    grouped_numbers = P::grouped_numbers(chunk, std::max(a.I, D));
    grouped = space.take(workers * grouped_numbers);
    sums_w = space.take(lanes * w_numbers);
    sums_r = space.take(lanes * r_numbers);
    gathered = space.take(a.recurrence.threads * most);
    for (const Real*** x : {&x_rows, &h_rows, &d_rows})
      *x = reinterpret_cast<const Real**>(space.take(rows * pointer<Real>));
  }

  int64_t all_rows() const { return a.recurrence.T * a.recurrence.B; }
  int64_t most_columns() const { return std::max(input.total, recurrent_columns); }

  // Distance of two rows of sums: rows a power of two apart would share cache sets.
  static int64_t sums_row(int64_t columns) { return columns + line<Real>; }

  template <class Body>
  void each(int64_t items, Body&& body) const {
    parallel_for(a.recurrence.region, a.recurrence.threads, items, body);
  }

  // A sum over rows of the products of m numbers, `offset` into each of them, with gate gradients.
  struct Outer {
    const Real* const* rows;
    int64_t offset, m;
    Real* sums;
  };

  // Those of a piece; add: it is not the first one.
  void add_piece(int64_t rows, bool add) const {
    if (rows == 0 || w_numbers + r_numbers == 0) return;
    if (lanes > 1)
      return each(lanes, [&](int64_t lane, int64_t worker) {
        add_to_lane(lane, rows * lane / lanes, rows * (lane + 1) / lanes, worker, add);
      });
    const int64_t chunks = (rows + chunk - 1) / chunk, most = (rows + chunks - 1) / chunks;
    for (int64_t r = 0; r < rows; r += most) {
      const int64_t count = std::min(most, rows - r);
      if (a.d_w != nullptr) outer(input, false, of_w(r), r, count, add || r > 0);
      for (int64_t n = 0; a.d_r != nullptr && n < N; ++n) {
        const Columns columns = of_head(n);
        outer(columns, held(n, columns), of_r(r, n), r, count, add || r > 0);
      }
    }
  }

  // The same of rows [begin, end) into one lane of the sums, by one thread.
  void add_to_lane(int64_t lane, int64_t begin, int64_t end, int64_t worker, bool add) const {
    if (begin == end && !add) {
      std::fill_n(sums_w + lane * w_numbers, w_numbers, Real{0});
      std::fill_n(sums_r + lane * r_numbers, r_numbers, Real{0});
    }
    const int64_t chunks = (end - begin + chunk - 1) / chunk;
    const int64_t most = chunks > 0 ? (end - begin + chunks - 1) / chunks : 1;
    Real *const operand = packed + worker * packed_numbers,
         *const groups = grouped + worker * grouped_numbers;
    for (int64_t r = begin; r < end; r += most) {
      const int64_t count = std::min(most, end - r);
      const auto multiply = [&](const Columns& columns, bool packed_already, const Outer& o,
                                Real* sums) {
        for (int64_t i = 0; i < count; i += together) {
          if (!packed_already) pack(columns, operand, r, i, count, worker);
          group(o, groups, i, count);
        }
        for (int64_t p = 0; p < P::panels(columns.total); ++p)
          P::multiply_grouped(groups, operand, sums, sums_row(columns.total), o.m, count,
                              columns.total, p, 0, P::groups(o.m), add || r > begin);
      };
      if (a.d_w != nullptr) multiply(input, false, of_w(r), sums_w + lane * w_numbers);
      for (int64_t n = 0; a.d_r != nullptr && n < N; ++n) {
        const Columns columns = of_head(n);
        const Outer o = of_r(r, n);
        multiply(columns, held(n, columns), o, o.sums + lane * r_numbers);
      }
    }
  }

  Outer of_w(int64_t first) const { return {x_rows + first, 0, a.I, sums_w}; }
  Outer of_r(int64_t first, int64_t n) const {
    return {h_rows + first, n * D, D, sums_r + n * D * sums_row(recurrent_columns)};
  }

  Columns of_head(int64_t n) const {
    Columns columns;
    for (int64_t i = 0; i < a.recurrents; ++i)
      for (int64_t g = 0; g < a.recurrent[i].count; ++g)
        columns.add(((a.recurrent[i].gate + g) * N + n) * D, D);
    return columns;
  }

  // Whether head n's columns were packed for w just before.
  bool held(int64_t n, const Columns& columns) const {
    return n == 0 && a.d_w != nullptr && columns == input;
  }

  // After the last piece.
  void finish() const {
    if (all_rows() > 0) add_lanes();
    transpose_sums();
  }

  // The lanes become one sum, in this order whoever computed them.
  void add_lanes() const {
    for (int64_t lane = 1; lane < lanes; ++lane) {
      for (int64_t i = 0; i < w_numbers; ++i) sums_w[i] += sums_w[lane * w_numbers + i];
      for (int64_t i = 0; i < r_numbers; ++i) sums_r[i] += sums_r[lane * r_numbers + i];
    }
  }

  // o.sums[m, n] += (or =) sum over `count` rows of o.rows[offset + m] times those columns of the
  // gate gradients. packed_already: those are the packed operand.
  void outer(const Columns& columns, bool packed_already, const Outer& o, int64_t first,
             int64_t count, bool add) const {
    const int64_t parts = (count + together - 1) / together, packs = packed_already ? 0 : parts;
    each(packs + parts, [&](int64_t i, int64_t worker) {
      if (i < packs)
        pack(columns, packed, first, i * together, count, worker);
      else
        group(o, grouped, (i - packs) * together, count);
    });
    const int64_t n = columns.total, panels = P::panels(n), groups = P::groups(o.m);
    const int64_t cut = std::min(groups, (4 * a.recurrence.threads + panels - 1) / panels);
    each(panels * cut, [&](int64_t i, int64_t) {
      const int64_t part = i % cut;
      P::multiply_grouped(grouped, packed, o.sums, sums_row(n), o.m, count, n, i / cut,
                          part * groups / cut, (part + 1) * groups / cut, add);
    });
  }

  // Some rows, from `row` of a chunk of `count`, of gate gradients become the packed operand.
  void pack(const Columns& columns, Real* operand, int64_t first, int64_t row, int64_t count,
            int64_t worker) const {
    for (int64_t k = row; k < std::min(row + together, count); ++k) {
      const Real* from = d_rows[first + k] + columns.pieces[0].offset;
      if (columns.pieces.size() > 1) {
        Real* to = gathered + worker * most_columns();
        from = to;
        for (const auto& piece : columns.pieces) {
          std::memcpy(to, d_rows[first + k] + piece.offset, piece.length * sizeof(Real));
          to += piece.length;
        }
      }
      P::pack_row(from, operand, columns.total, count, k);
    }
  }

  // The same rows of what is broadcast.
  void group(const Outer& o, Real* groups, int64_t row, int64_t count) const {
    const int64_t some = std::min(together, count - row);
    const Real* from[together];
    for (int64_t j = 0; j < some; ++j) from[j] = o.rows[row + j] + o.offset;
    for (int64_t g = 0; g < P::groups(o.m); ++g)
      P::pack_group(from, groups, o.m, count, row, some, g);
  }

  // The sums are [I, columns] and [N, P, G_r D], their rows apart; the weights have the transposed
  // order.
  void transpose_sums() const {
    const bool some = all_rows() > 0;
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
