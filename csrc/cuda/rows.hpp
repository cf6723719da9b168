// The two rows of the batch that a lane has, where each ends, and where its steps stand in time.
#pragma once

#include "cuda/product.hpp"

namespace flashrnn {

struct Rows {
  int first;     // of a tile's 16
  int at[2];     // in the batch
  int steps[2];  // 0 for rows beyond the batch
  int longest;   // of all 16
  bool reverse;

  FLASHRNN_INLINE Rows(const Place& place, int first_row, const int64_t* lengths, int B, int T,
                       bool backwards)
      : first(first_row), longest(first_row < B ? T : 0), reverse(backwards) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      at[i] = first + place.row + 8 * i;
      steps[i] = at[i] < B ? (lengths == nullptr ? T : int(lengths[at[i]])) : 0;
    }
    if (lengths == nullptr) return;
    longest = 0;
    for (int b = first; b < first + rows_per_block && b < B; ++b) {
      const int end = int(lengths[b]);
      longest = end > longest ? end : longest;
    }
  }

  FLASHRNN_INLINE bool active(int i, int t) const { return t < steps[i]; }

  // The position in time of step t of row i.
  FLASHRNN_INLINE int64_t time(int i, int t) const { return reverse ? steps[i] - 1 - t : t; }
};

}  // namespace flashrnn
