// How weights lie in memory while a kernel runs: in register panels, padded with zeros.
#pragma once

#include <cstdint>

#include "cpu/parallel.hpp"
#include "cpu/transpose.hpp"

namespace flashrnn {

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Numbers in a cache line of the widest machines; workspaces keep to it.
template <class Real>
constexpr int64_t line = 64 / sizeof(Real);

// Terms of a product that are summed before they meet the total. In one long chain the error would
// grow with the square root of all of them; and so much of a panel of R stays in the first cache,
// where all rows of a batch find it. The same for every tiling, as the sums' bits are.
template <class S>
constexpr int64_t stretch = sizeof(typename S::Vec) > 32 ? 64 : 128;

// Rows of a batch cut into register tiles of at most Most rows, as equal as can be: a tile of few
// rows waits for its own multiply-adds.
template <int Most>
struct RowTiles {
  int64_t count, low, higher;  // tiles; rows of each; tiles that have one row more

  explicit RowTiles(int64_t rows)
      : count((rows + Most - 1) / Most), low(rows / count), higher(rows % count) {}

  // body(constant number of rows, first row) for each tile.
  template <class Body>
  FLASHRNN_INLINE void each(Body&& body) const {
    for (int64_t i = 0, b = 0; i < count; ++i) {
      const int64_t rows = low + (i < higher);
      choose<Most>(rows, [&](auto some) __attribute__((always_inline)) { body(some, b); });
      b += rows;
    }
  }
};

// Numbers that a pointer takes in a workspace.
template <class Real>
constexpr int64_t pointer = sizeof(Real*) / sizeof(Real);

// Hands out pieces of the workspace; with a null base it only adds up what would be needed.
template <class Real>
struct Workspace {
  Real* base;
  int64_t used = 0;

  Real* take(int64_t count) {
    Real* piece = base == nullptr ? nullptr : base + used;
    used += round_up(count, line<Real>);
    return piece;
  }
};

// Waking threads costs more than packing a few hundred kilobytes.
template <class Real>
int64_t pack_threads(int64_t numbers, int64_t threads) {
  return numbers * int64_t{sizeof(Real)} < (int64_t{1} << 20) ? 1 : threads;
}

// Weights [G, N, D, length] for products over their last dimension: one panel, [k][g][unit].
template <class S, int Gates, int Panel>
void pack_panel(const typename S::Real* weights, typename S::Real* packed, int64_t n,
                int64_t panel, int64_t N, int64_t D, int64_t length) {
  for (int g = 0; g < Gates; ++g)
    for (int64_t unit = 0; unit < Panel; unit += S::lanes) {
      const int64_t d = panel * Panel + unit;
      transpose<S, true>(weights + ((g * N + n) * D + d) * length, length,
                         packed + g * Panel + unit, Gates * Panel, D - d, length);
    }
}

// R [G, N, D, P] for products over (g, d): packed[n][panel][g][d][p], p < Panel.
template <int Gates, int Panel, class Real>
void pack_over_gd(const Real* r, Real* packed, int64_t n, int64_t panel, int64_t N, int64_t D) {
  const int64_t p0 = panel * Panel, count = D - p0 < Panel ? D - p0 : Panel;
  for (int g = 0; g < Gates; ++g)
    for (int64_t d = 0; d < D; ++d) {
      const Real* from = r + ((g * N + n) * D + d) * D + p0;
      Real* to = packed + (g * D + d) * Panel;
      for (int64_t p = 0; p < count; ++p) to[p] = from[p];
      for (int64_t p = count; p < Panel; ++p) to[p] = 0;
    }
}

// Rows [K, N, D] -> [N, K, padded], zeros behind D; a null source gives zeros.
template <class Real>
void pad_rows(const Real* rows, Real* padded, int64_t K, int64_t n, int64_t N, int64_t D,
              int64_t width) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t d = 0; d < width; ++d)
      padded[k * width + d] = rows != nullptr && d < D ? rows[(k * N + n) * D + d] : 0;
}

}  // namespace flashrnn
