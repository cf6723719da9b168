// The matrix products of a layer around its recurrence: a register tile of rows x vectors over
// packed operands, whose rows may lie anywhere in memory, so that a batch is never copied into
// another order.
//
// After Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), with two
// differences. An operand whose rows are contiguous along the contraction is broadcast from where
// it lies. And the contraction is cut so short that a panel of the packed operand stays in the
// first-level cache: a broadcast costs wide machines two loads already.
#pragma once

#include <algorithm>

#include "cpu/panels.hpp"

namespace flashrnn {

template <class S>
struct Product {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  static constexpr int W = S::lanes;
  // 6 x 4 vectors of sums fill 24 of 32 registers, 6 x 2 fill 12 of 16.
  static constexpr int tile_rows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int tile_vectors = 4;
#else
  static constexpr int tile_vectors = 2;
#endif
  static constexpr int64_t panel = tile_vectors * W;
  static constexpr int64_t depth = 24 * 1024 / (panel * int64_t{sizeof(Real)});  // of L1's 32 KB
  // Of the broadcast operand, so much that it stays in the second cache for all panels.
  static constexpr int64_t block_rows = 24 * tile_rows, row_bytes = 3 * 1024;
  static constexpr int64_t block_depth =
      depth * std::max<int64_t>(1, row_bytes / sizeof(Real) / depth);
  static constexpr int64_t slot = 8;  // distance of packed groups of tile_rows numbers

  static constexpr int64_t panels(int64_t n) { return (n + panel - 1) / panel; }
  static constexpr int64_t packed_numbers(int64_t k, int64_t n) { return panels(n) * panel * k; }
  static constexpr int64_t groups(int64_t m) { return (m + tile_rows - 1) / tile_rows; }
  static constexpr int64_t grouped_numbers(int64_t k, int64_t m) { return groups(m) * slot * k; }

  // Rows of a block, so that each of some threads has as many blocks as the others.
  static constexpr int64_t rows_of_block(int64_t rows, int64_t threads) {
    const int64_t each = (rows + threads * block_rows - 1) / (threads * block_rows);
    const int64_t blocks = threads * std::max<int64_t>(1, each);
    return std::max<int64_t>(1, groups((rows + blocks - 1) / blocks)) * tile_rows;
  }

  // from [n][k] contiguous -> packed[panel][k][unit], one panel, zeros behind n.
  static void pack_transposed(const Real* from, Real* packed, int64_t n, int64_t k, int64_t p) {
    Real* to = packed + p * panel * k;
    for (int64_t n0 = p * panel; n0 < (p + 1) * panel; n0 += W, to += W)
      transpose<S, true>(from + n0 * k, k, to, panel, n - n0, k);
  }

  // Row k of the packed operand: from[0..n) -> packed[panel][k][unit], zeros behind n.
  static FLASHRNN_INLINE void pack_row(const Real* from, Real* packed, int64_t n, int64_t k,
                                       int64_t row) {
    for (int64_t p = 0; p < panels(n); ++p) {
      Real* to = packed + (p * k + row) * panel;
      const int64_t n0 = p * panel;
      unroll<tile_vectors>([&](auto v) __attribute__((always_inline)) {
        const int64_t count = n - n0 - v * W;
        S::store(to + v * W, count <= 0 ? Vec{} : S::load(from + n0 + v * W, count));
      });
    }
  }

  // Rows [row, row + count) of the broadcast operand -> packed[group][row][slot].
  static FLASHRNN_INLINE void pack_group(const Real* const* from, Real* packed, int64_t m,
                                         int64_t k, int64_t row, int64_t count, int64_t group) {
    Real* to = packed + (group * k + row) * slot;
    const int64_t m0 = group * tile_rows;
    if (m - m0 >= slot) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(to + i * slot, from[i] + m0, slot * sizeof(Real));
    } else {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < slot; ++j) to[i * slot + j] = m0 + j < m ? from[i][m0 + j] : 0;
    }
  }

  // c[i][0..n) += (or =) sum over k of a[i][k] packed[k], for rows i of a block of at most
  // block_rows. a, c: where each row begins.
  static void multiply(const Real* const* a, const Real* packed, Real* const* c, int64_t rows,
                       int64_t k, int64_t n, bool add) {
    for (int64_t first = 0; first < k || first == 0; first += block_depth)
      for (int64_t p = 0; p < panels(n); ++p)
        for (int64_t k0 = first; k0 == first || k0 < std::min(k, first + block_depth); k0 += depth) {
          const Real* b = packed + (p * k + k0) * panel;
          const int64_t length = k - k0 < depth ? k - k0 : depth;
          for (int64_t i = 0; i < rows; i += tile_rows)
            any_tile(rows - i, {a + i, k0, 1, b, c + i, p * panel, length, n, add || k0,
                                next(b, length, i, rows)});
        }
  }

  // c[i][p * panel ...] += (or =) sum over k of grouped[i][k] packed[k], for one panel p of n
  // columns and the groups [first, last) of m rows.
  static void multiply_grouped(const Real* grouped, const Real* packed, Real* c, int64_t c_row,
                               int64_t m, int64_t k, int64_t n, int64_t p, int64_t first,
                               int64_t last, bool add) {
    for (int64_t k0 = 0; k0 < k; k0 += depth) {
      const Real* b = packed + (p * k + k0) * panel;
      const int64_t length = k - k0 < depth ? k - k0 : depth;
      for (int64_t group = first; group < last; ++group) {
        const int64_t i = group * tile_rows;
        const Real* a[tile_rows];
        Real* rows[tile_rows];
        for (int64_t j = 0; j < tile_rows; ++j) {
          a[j] = grouped + (group * k + k0) * slot + j;
          rows[j] = c + (i + j) * c_row;
        }
        any_tile(m - i, {a, 0, slot, b, rows, p * panel, length, n, add || k0,
                         next(b, length, group - first, last - first)});
      }
    }
  }

 private:
  struct Tile {
    const Real* const* rows;  // where rows begin
    int64_t offset, apart;    // how far into them, and the distance of two of their numbers
    const Real* b;
    Real* const* c;
    int64_t column, length, n;
    bool add;
    const Real* next;  // of the packed operand, to be fetched meanwhile; may lie behind its end
  };
  static constexpr int64_t fetched = depth * panel / (block_rows / tile_rows);

  // Where the share of row or group i of count begins in the stretch that follows in memory, so that
  // this is in the second cache when its turn comes.
  static FLASHRNN_INLINE const Real* next(const Real* b, int64_t length, int64_t i, int64_t count) {
    return b + length * panel + i * length / count * panel;
  }

  // Few sizes, for the compiler's sake: what is left of the rows goes by 4, 2 and 1.
  static FLASHRNN_INLINE void any_tile(int64_t rows, const Tile& t) {
    const int64_t columns = t.n - t.column;
    if (rows < tile_rows) return few_rows(rows, t);
    if (columns >= panel) return tile<tile_rows, tile_vectors, true>(t);
    choose<tile_vectors>((columns + W - 1) / W, [&](auto v) { tile<tile_rows, v, false>(t); });
  }

  static __attribute__((noinline)) void few_rows(int64_t rows, Tile t) {
    const auto some = [&](auto count) {
      for (; rows >= count; rows -= count) {
        tile<count, tile_vectors, false>(t);
        t.rows += count;
        t.c += count;
      }
    };
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 2>{});
    some(std::integral_constant<int, 1>{});
  }

  // whole: all columns of the tile exist.
  template <int Rows, int V, bool whole>
  static __attribute__((noinline)) void tile(const Tile& t) {
    const int64_t count = t.n - t.column;
    // The results so far are needed last, by when they are at hand.
    if (t.add)
      unroll<Rows * V>([&](auto i) __attribute__((always_inline)) {
        __builtin_prefetch(t.c[i / V] + t.column + i % V * W, 1);
      });
    unroll<fetched / line<Real>>([&](auto i) __attribute__((always_inline)) {
      __builtin_prefetch(t.next + i * line<Real>, 0, 2);
    });
    // Sums of a stretch begin at zero: added one by one to a large total, small products would lose
    // digits, and the error would grow with the square root of all of them.
    Vec sum[Rows][V] = {};
    const Real* row[Rows];
    unroll<Rows>([&](auto i) __attribute__((always_inline)) {
      row[i] = t.rows[i] + t.offset;
      keep_address(row[i]);
    });
    const int64_t apart = t.apart;
    int64_t at = 0;
    repeat<Rows * V>(t.length, [&](int64_t k) __attribute__((always_inline)) {
      Vec b[V];
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        b[v] = S::load(t.b + k * panel + v * W);
        S::keep_in_register(b[v]);
      });
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        const Vec x = S::broadcast(row[i][at]);
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          sum[i][v] = S::fma(b[v], x, sum[i][v]);
        });
      });
      at += apart;
    });
    const auto keep = [&](auto add) __attribute__((always_inline)) {
      unroll<Rows>([&](auto i) __attribute__((always_inline)) {
        Real* const c = t.c[i] + t.column;
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          if (!whole && count <= v * W) return;
          const int64_t some = whole ? W : count - v * W;
          if constexpr (add) sum[i][v] += S::load(c + v * W, some);
          S::store(c + v * W, sum[i][v], some);
        });
      });
    };
    t.add ? keep(std::true_type{}) : keep(std::false_type{});
  }
};

}  // namespace flashrnn
