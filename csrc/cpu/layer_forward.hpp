// A layer's forward pass: the input product and the recurrence behind it, a piece of the sequence at
// a time, so that the input products never exist for the whole sequence. Compiled once for all
// cells: the recurrence comes in as a pointer to a cell's kernel.
#pragma once

#include <algorithm>

#include "cpu/forward.hpp"
#include "cpu/product.hpp"

namespace flashrnn {

// Mirrored by flashrnn/runtime/surround.py: every field takes 8 bytes. Strides count numbers.
template <class Real>
struct LayerForwardArguments {
  ForwardArguments<Real> recurrence;  // of the whole sequence, but for wx
  void (*run)(const ForwardArguments<Real>*);
  const Real* x;  // [B, T, I], innermost dimension contiguous
  int64_t x_b, x_t, I;
  const Real* w;  // [columns, I] contiguous: [G_w, N, D, I]
  int64_t columns, steps;  // steps of a piece
  Real* workspace;
};

template <class S>
struct LayerForward {
  using Real = typename S::Real;
  using P = Product<S>;

  const LayerForwardArguments<Real>& a;
  int64_t row, x_row;  // distances of two rows of the products, and of copies of x
  Real *packed, *products, *copies;
  const Real** x_rows;
  Real** product_rows;

  explicit LayerForward(const LayerForwardArguments<Real>& arguments, int64_t* needed = nullptr)
      : a(arguments) {
    const int64_t rows = a.steps * a.recurrence.B;
    row = a.columns + line<Real>;
    x_row = a.I + line<Real>;
    Workspace<Real> space{a.workspace};
    packed = space.take(P::packed_numbers(a.I, a.columns));
    products = space.take(rows * row);
    copies = space.take(a.recurrence.threads * P::block_rows * x_row);
    x_rows = reinterpret_cast<const Real**>(space.take(rows * pointer<Real>));
    product_rows = reinterpret_cast<Real**>(space.take(rows * pointer<Real>));
    if (needed != nullptr) *needed = space.used;
  }

  void run() const {
    ForwardArguments<Real> piece = a.recurrence;
    const int64_t T = piece.T, B = piece.B;
    if (T * B > direct_rows)
      parallel_for(piece.region, pack_threads<Real>(a.columns * a.I, piece.threads),
                   P::panels(a.columns),
                   [&](int64_t p, int64_t) { P::pack_transposed(a.w, packed, a.columns, a.I, p); });
    if (T > a.steps) piece.packed = weights_to_pack;
    piece.wx = products;
    piece.wx_t = B * row;
    piece.wx_b = row;
    piece.wx_g = piece.N * piece.D;
    piece.wx_n = piece.D;
    piece.ordered = 1;
    for (int64_t start = 0; start < T; start += piece.T) {
      piece.T = T - start < a.steps ? T - start : a.steps;
      const int64_t rows = piece.T * B, block = P::rows_of_block(rows, piece.threads);
      const int64_t blocks = (rows + block - 1) / block;
      piece.order.start = start;
      for (int64_t t = 0, r = 0; t < piece.T; ++t)
        for (int64_t b = 0; b < B; ++b, ++r) {
          x_rows[r] = a.x + piece.order.position(b, t) * a.x_t + b * a.x_b;
          product_rows[r] = products + r * row;
        }
      if (T * B > direct_rows)
        parallel_for(piece.region, piece.threads, blocks, [&](int64_t i, int64_t worker) {
          const int64_t r = i * block, count = std::min(block, rows - r);
          // Sequences that are a power of two apart would share cache sets.
          const Real* x[P::block_rows];
          for (int64_t j = 0; j < count; ++j) {
            Real* copy = copies + (worker * P::block_rows + j) * x_row;
            std::memcpy(copy, x_rows[r + j], a.I * sizeof(Real));
            x[j] = copy;
          }
          P::multiply(x, packed, product_rows + r, count, a.I, a.columns, false);
        });
      else
        multiply_directly(rows);
      a.run(&piece);
      piece.packed = weights_packed;
      piece.initial = piece.last;
    }
  }

  // Few rows do not pay for packing W.
  void multiply_directly(int64_t rows) const {
    constexpr int64_t W = S::lanes;
    parallel_for(a.recurrence.region, pack_threads<Real>(a.columns * a.I, a.recurrence.threads),
                 (a.columns + W - 1) / W, [&](int64_t i, int64_t) {
                   const int64_t c = i * W, count = std::min(W, a.columns - c);
                   for (int64_t r = 0; r < rows; ++r)
                     S::store(product_rows[r] + c,
                              dot_products<S>(a.w + c * a.I, count, x_rows[r], a.I), count);
                 });
  }
};

}  // namespace flashrnn
