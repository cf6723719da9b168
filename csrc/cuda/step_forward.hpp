// The pointwise part of one forward step of any cell, for heads whose R no schedule holds: the
// product with R is a library's, before each of these. A thread has one unit of one row.
#pragma once

#include "cuda/block_forward.hpp"

namespace flashrnn {

// Fields of 8 bytes, mirrored by flashrnn/runtime/cuda_launch.py. r, initial and last are not read.
template <class Storage>
struct StepForwardArguments : ForwardArguments<Storage> {
  const Storage* products;  // [N, B, G_r, D]
  float* carried;           // [S, B, N, D], read and written
  Storage* h;               // [N, B, D], for the next product
  int64_t t;
};

template <class Cell, class Storage, int D, int Threads, bool Training>
struct StepForward {
  using F = Format<Storage>;
  using Arguments = StepForwardArguments<Storage>;
  static constexpr int threads = Threads, shared_bytes = 0;
  static constexpr int G = Cell::gates, Gr = Cell::recurrent, S = Cell::states;
  static constexpr int K = Cell::weights, Q = Cell::saved;

  const Arguments& a;
  FLASHRNN_INLINE explicit StepForward(const Arguments& arguments) : a(arguments) {}

  FLASHRNN_INLINE void run() const {
    const int64_t i = int64_t{block_x()} * Threads + thread_index(), row = i / D;
    const int unit = int(i % D);
    const int64_t n = row % a.N, b = row / a.N;
    if (b >= a.B) return;
    const int64_t steps = a.lengths == nullptr ? a.T : a.lengths[b];
    if (a.t >= steps) return;
    const int64_t time = a.reverse != 0 ? steps - 1 - a.t : a.t;
    float gate[G], before[S], weight[at_least(K, 1)] = {}, after[S], kept[at_least(Q, 1)];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      gate[g] = F::widen(a.bias[(g * a.N + n) * D + unit]);
      const int w = Cell::input_slot[g], slot = Cell::recurrent_slot[g];
      if (w >= 0) {
        gate[g] += F::widen(a.wx[b * a.wx_b + time * a.wx_t + w * a.wx_g + n * a.wx_n + unit]);
      }
      if (slot >= 0) gate[g] += F::widen(a.products[((n * a.B + b) * Gr + slot) * D + unit]);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) weight[k] = F::widen(a.weights[(k * a.N + n) * D + unit]);
#pragma unroll
    for (int s = 0; s < S; ++s) before[s] = a.carried[s * a.B * a.N * D + i];
    Cell::template forward<Lane>(gate, before, weight, after, kept);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      a.carried[s * a.B * a.N * D + i] = after[s];
      a.states[s * a.states_s + b * a.states_b + time * a.states_t + n * a.states_n + unit] =
          F::narrow(after[s]);
    }
    a.h[(n * a.B + b) * D + unit] = F::narrow(after[0]);
    if constexpr (Training) {
#pragma unroll
      for (int k = 0; k < Q; ++k)
        a.saved[(((a.t * a.B + b) * a.N + n) * Q + k) * D + unit] = F::narrow(kept[k]);
    }
  }
};

}  // namespace flashrnn
