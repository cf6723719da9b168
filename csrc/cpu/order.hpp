// In which order a sequence's steps are taken, and where each of them stands in memory.
#pragma once

#include <cstdint>

namespace flashrnn {

// Fields of the arguments of every recurrence. A call may take part of the steps: those from
// `start` on, counted as they are taken.
struct Order {
  const int64_t* lengths;  // [B], or null where all rows have all `total` steps
  int64_t total, start, reverse;

  int64_t length(int64_t b) const { return lengths == nullptr ? total : lengths[b]; }

  // Whether rows [b, b + count) have no step t of this call.
  bool ended(int64_t b, int64_t count, int64_t t) const {
    if (lengths == nullptr) return false;
    for (int64_t i = b; i < b + count; ++i)
      if (start + t < lengths[i]) return false;
    return true;
  }

  // Whether any of them has none.
  bool some_ended(int64_t b, int64_t count, int64_t t) const {
    if (lengths == nullptr) return false;
    for (int64_t i = b; i < b + count; ++i)
      if (start + t >= lengths[i]) return true;
    return false;
  }

  // Where step t of this call stands in a tensor of the whole sequence. Steps that a row lacks
  // stand at its end, in either direction.
  int64_t position(int64_t b, int64_t t) const {
    const int64_t step = start + t, end = length(b);
    return reverse && step < end ? end - 1 - step : step;
  }

  // The steps of this call, of T, that any of the rows [b, b + count) has.
  int64_t longest(int64_t b, int64_t count, int64_t T) const {
    if (lengths == nullptr) return T;
    int64_t most = 0;
    for (int64_t i = b; i < b + count; ++i)
      if (lengths[i] - start > most) most = lengths[i] - start;
    return most < T ? most : T;
  }
};

// Where the values lie that a cell saves of unit d, a whole vector of `lanes`, in [T, B, N, vectors
// of D, values, lanes]; a: the arguments of either direction.
template <class Arguments>
int64_t saved_offset(const Arguments& a, int64_t step, int64_t b, int64_t n, int64_t d,
                     int64_t values, int64_t lanes) {
  const int64_t vectors = (a.D + lanes - 1) / lanes;
  return (((step * a.B + b) * a.N + n) * vectors + d / lanes) * values * lanes;
}

}  // namespace flashrnn
