// The pointwise part of one backward step of any cell, for heads whose R no schedule holds: the
// product of the gates' gradients with R is a library's, after each of these but the first step's. A
// thread has one unit of one row.
#pragma once

#include "cuda/block_backward.hpp"

namespace flashrnn {

// Fields of 8 bytes, mirrored by flashrnn/runtime/cuda_launch.py. r, d_last and d_initial are not
// read; d_weights is [B, K, N, D], added to.
template <class Storage>
struct StepBackwardArguments : BackwardArguments<Storage> {
  const Storage* products;  // [N, B, D], of the step behind
  Storage* operand;         // [N, B, G_r, D], for the next product
  float* carried;           // [S, B, N, D], read and written
  int64_t t;
};

template <class Cell, class Storage, int D, int Threads>
struct StepBackward {
  using F = Format<Storage>;
  using Arguments = StepBackwardArguments<Storage>;
  static constexpr int threads = Threads, shared_bytes = 0;
  static constexpr int G = Cell::gates, Gr = Cell::recurrent, S = Cell::states;
  static constexpr int K = Cell::weights, Q = Cell::saved;

  const Arguments& a;
  FLASHRNN_INLINE explicit StepBackward(const Arguments& arguments) : a(arguments) {}

  FLASHRNN_INLINE void run() const {
    const int64_t i = int64_t{block_x()} * Threads + thread_index(), row = i / D;
    const int unit = int(i % D);
    const int64_t n = row % a.N, b = row / a.N, count = a.B * a.N * D;
    if (b >= a.B) return;
    const int64_t steps = a.lengths == nullptr ? a.T : a.lengths[b];
    if (a.t >= steps) {
#pragma unroll
      for (int g = 0; g < Gr; ++g) a.operand[((n * a.B + b) * Gr + g) * D + unit] = Storage{};
      return;
    }
    const int64_t time = a.reverse != 0 ? steps - 1 - a.t : a.t;
    float d_next[S];
#pragma unroll
    for (int s = 0; s < S; ++s) d_next[s] = a.carried[s * count + i];
    if (a.t + 1 < steps) {  // what flows back from the step behind
      if (a.cut == 0) d_next[0] += F::widen(a.products[(n * a.B + b) * D + unit]);
      const float clip = float(a.clip);
      d_next[0] = math::minimum<Lane>(math::maximum<Lane>(d_next[0], -clip), clip);
    }
    float state[S], next[S], save[at_least(Q, 1)] = {}, weight[at_least(K, 1)] = {};
    float d_gate[G], d_state[S], d_weight[at_least(K, 1)];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int64_t at =
          s * a.states_s + b * a.states_b + time * a.states_t + n * a.states_n + unit;
      const int64_t earlier = a.reverse != 0 ? at + a.states_t : at - a.states_t;
      state[s] = next[s] = 0.0f;
      if (Cell::reads_next[s]) next[s] = F::widen(a.states[at]);
      if (Cell::reads_state[s]) {
        state[s] = F::widen(a.t == 0 ? a.initial[s * count + i] : a.states[earlier]);
      }
      if (a.d_states != nullptr) {
        d_next[s] += F::widen(a.d_states[s * a.d_states_s + b * a.d_states_b +
                                         time * a.d_states_t + n * a.d_states_n + unit]);
      }
    }
#pragma unroll
    for (int k = 0; k < Q; ++k)
      save[k] = F::widen(a.saved[(((a.t * a.B + b) * a.N + n) * Q + k) * D + unit]);
#pragma unroll
    for (int k = 0; k < K; ++k) weight[k] = F::widen(a.weights[(k * a.N + n) * D + unit]);
    Cell::template backward<Lane>(state, next, weight, save, d_next, d_gate, d_state, d_weight);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      a.d_gates[b * a.d_gates_b + time * a.d_gates_t + g * a.d_gates_g + n * a.d_gates_n + unit] =
          F::narrow(d_gate[g]);
      const int slot = Cell::recurrent_slot[g];
      if (slot >= 0) a.operand[((n * a.B + b) * Gr + slot) * D + unit] = F::narrow(d_gate[g]);
    }
#pragma unroll
    for (int s = 0; s < S; ++s) a.carried[s * count + i] = d_state[s];
#pragma unroll
    for (int k = 0; k < K; ++k) a.d_weights[((b * K + k) * a.N + n) * D + unit] += d_weight[k];
  }
};

}  // namespace flashrnn
