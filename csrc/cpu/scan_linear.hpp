// Linear recurrences h_t = a_t h_{t-1} + b_t, each channel for itself, real or complex: forward and
// backward. Work items, order in memory and phases as in scan_attention.hpp.
//
// Backward, from the last row on, with c the gradient of the state behind the row:
//   d_b_t = d_h_t + c,   d_a_t = conj(h_{t-1}) d_b_t,   then c = conj(a_t) d_b_t.
#pragma once

#include "cpu/scan.hpp"

namespace flashrnn {

// Products of vectors of real numbers, or of complex ones as neighbouring pairs.
template <class S, bool IsComplex>
struct Field {
  using Vec = typename S::Vec;
  static FLASHRNN_INLINE Vec one() { return S::broadcast(1); }
  static FLASHRNN_INLINE Vec conjugate(Vec a) { return a; }
  static FLASHRNN_INLINE Vec fma(Vec a, Vec b, Vec c) { return S::fma(a, b, c); }
};

template <class S>
struct Field<S, true> {
  using Vec = typename S::Vec;

  // The numbers at (i & keep | set) ^ flip of each i.
  template <int keep, int set, int flip>
  static FLASHRNN_INLINE Vec shuffle(Vec a) {
    return [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
      return __builtin_shufflevector(a, a, (((I & keep) | set) ^ flip)...);
    }(std::make_integer_sequence<int, S::lanes>{});
  }

  static FLASHRNN_INLINE Vec signs(typename S::Real even, typename S::Real odd) {
    Vec v{};
    unroll<S::lanes>([&](auto i) __attribute__((always_inline)) { v[int(i)] = int(i) % 2 ? odd : even; });
    return v;
  }

  static FLASHRNN_INLINE Vec one() { return signs(1, 0); }
  static FLASHRNN_INLINE Vec conjugate(Vec a) { return a * signs(1, -1); }

  // a * b + c
  static FLASHRNN_INLINE Vec fma(Vec a, Vec b, Vec c) {
    const Vec real = shuffle<~1, 0, 0>(a);
    const Vec imaginary = shuffle<~0, 1, 0>(a) * signs(-1, 1);
    return S::fma(real, b, S::fma(imaginary, shuffle<~0, 0, 1>(b), c));
  }
};

template <class Real, class Stored>
struct ScanLinearArguments {
  Tensor<const Stored> a, b;  // [B, T, C]; C counts real numbers; a may have strides of 0
  const Real* initial;        // [B, C], or null for zeros
  Tensor<Stored> h;           // [B, T, C]
  Real* workspace;
  ParallelRegion region;
  Sequences sequences;
  int64_t C;
  Cut cut;
};

template <class Real, class Stored>
struct ScanLinearBackwardArguments {
  Tensor<const Stored> a, h, d_h;
  const Real* initial;
  Tensor<Stored> d_a, d_b;
  Real* d_initial;  // [B, C], or null
  Real* workspace;
  ParallelRegion region;
  Sequences sequences;
  int64_t C;
  Cut cut;
};

// What both directions share: a state per channel, and the three phases.
template <class S, class Own, class Arguments_>
class LinearScan {
 protected:
  using Real = typename S::Real;
  using Vec = typename S::Vec;

 public:
  using Arguments = Arguments_;

  LinearScan(const Arguments& a, Real* workspace, int64_t* needed = nullptr)
      : a(a), items(a.sequences, a.cut, a.C), memory{workspace} {
    padded = round_up(items.per_core, S::lanes);
    const int64_t count = items.count();
    states = memory.take(count * padded);
    if (items.chunks > 1) {
      factors = memory.take(count * padded);
      carries = memory.take(count / items.chunks * padded);
    }
    if (needed != nullptr) *needed = memory.used;
  }

  void run() {
    const auto own = static_cast<Own*>(this);
    own->choose_stores();
    const auto all = [&](auto&& body) {
      parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t) {
        const auto item = items[i];
        if (item.exists()) body(item, i);
      });
    };
    if (items.chunks > 1) {
      all([&](const Items::Item& item, int64_t i) {
        std::memset(states + i * padded, 0, padded * sizeof(Real));
        for (int64_t k = 0; k < padded; k += S::lanes) S::store(factors + i * padded + k, Own::F::one());
        own->totals(item, states + i * padded, factors + i * padded);
      });
      parallel_for(a.region, a.cut.threads, items.count() / items.chunks,
                   [&](int64_t i, int64_t) { join(i * items.chunks); });
    } else {
      all([&](const Items::Item& item, int64_t i) { own->begin(item, states + i * padded); });
    }
    all([&](const Items::Item& item, int64_t i) {
      own->finish(item, states + i * padded);
      fence();
    });
  }

 protected:
  // body(panel, channel) for each vector of a row, in the order of memory.
  template <int Vectors, bool Descending, class Body>
  static FLASHRNN_INLINE void row(int64_t columns, Body&& body) {
    panels<S, Vectors, Descending>(columns, [&](auto panel) __attribute__((always_inline)) {
      unroll_along<decltype(panel)::vectors, Descending>(
          [&](auto k) __attribute__((always_inline)) { body(panel, panel.at + k * S::lanes); });
    });
  }

  // From each chunk's own total to the state that it starts from.
  void join(int64_t first) {
    const auto own = static_cast<Own*>(this);
    Real* state = carries + first / items.chunks * padded;
    own->begin(items[first], state);
    for (int64_t k = 0; k < items.chunks; ++k) {
      const int64_t i = first + (Own::forwards ? k : items.chunks - 1 - k);
      for (int64_t c = 0; c < padded; c += S::lanes) {
        Real *total = states + i * padded + c, *factor = factors + i * padded + c;
        const Vec start = S::load(state + c);
        S::store(state + c, Own::F::fma(S::load(factor), start, S::load(total)));
        S::store(total, start);
      }
    }
  }

  const Arguments& a;
  Items items;
  Workspace<Real> memory;
  int64_t padded;
  Real *states, *factors = nullptr, *carries = nullptr;
  bool streaming = false;
};

template <class S, class Stored, int Vectors, bool IsComplex>
class ScanLinear : public LinearScan<S, ScanLinear<S, Stored, Vectors, IsComplex>,
                                     ScanLinearArguments<typename S::Real, Stored>> {
  using Base = LinearScan<S, ScanLinear, ScanLinearArguments<typename S::Real, Stored>>;
  using typename Base::Real;
  using typename Base::Vec;

 public:
  using Base::Base, Base::a, Base::streaming;
  using F = Field<S, IsComplex>;
  static constexpr bool forwards = true;

  void choose_stores() {
    streaming = a.cut.streaming && may_stream<S>(a.h, a.C) && a.cut.columns_per_core % S::lanes == 0;
  }

  void begin(const Items::Item& item, Real* state) const {
    const Real* from = a.initial + item.sequence * a.C + item.first_column;
    for (int64_t c = 0; c < this->padded; ++c)
      state[c] = a.initial != nullptr && c < item.columns ? from[c] : 0;
  }

  void totals(const Items::Item& item, Real* state, Real* factor) const {
    walk<true>(item, state, factor);
  }

  void finish(const Items::Item& item, Real* state) const {
    walk<false>(item, state, nullptr);
  }

 private:
  template <bool Totals>
  void walk(const Items::Item& item, Real* state, Real* factor) const {
    a.sequences.reverse ? rows<Totals, true>(item, state, factor)
                        : rows<Totals, false>(item, state, factor);
  }

  // Descending: in memory; in time they ascend.
  template <bool Totals, bool Descending>
  __attribute__((noinline)) void rows(const Items::Item& item, Real* state, Real* factor) const {
    const auto of_a = a.sequences.rows(a.a, item.sequence).shifted(item.first_column);
    const auto of_b = a.sequences.rows(a.b, item.sequence).shifted(item.first_column);
    const auto of_h = a.sequences.rows(a.h, item.sequence).shifted(item.first_column);
    for (int64_t i = item.begin; i < item.end; ++i)
      this->template row<Vectors, Descending>(
          item.columns, [&](auto panel, int64_t at) __attribute__((always_inline)) {
            const Vec x = panel.load(of_a[i] + at);
            const Vec h = F::fma(x, S::load(state + at), panel.load(of_b[i] + at));
            S::store(state + at, h);
            if constexpr (Totals)
              S::store(factor + at, F::fma(x, S::load(factor + at), Vec{}));
            else
              panel.store(of_h[i] + at, h, streaming);
          });
  }
};

template <class S, class Stored, int Vectors, bool IsComplex>
class ScanLinearBackward
    : public LinearScan<S, ScanLinearBackward<S, Stored, Vectors, IsComplex>,
                        ScanLinearBackwardArguments<typename S::Real, Stored>> {
  using Base =
      LinearScan<S, ScanLinearBackward, ScanLinearBackwardArguments<typename S::Real, Stored>>;
  using typename Base::Real;
  using typename Base::Vec;

 public:
  using Base::Base, Base::a, Base::streaming;
  using F = Field<S, IsComplex>;
  static constexpr bool forwards = false;

  void choose_stores() {
    streaming = a.cut.streaming && may_stream<S>(a.d_a, a.C) && may_stream<S>(a.d_b, a.C) &&
                      a.cut.columns_per_core % S::lanes == 0;
  }

  void begin(const Items::Item&, Real* state) const {
    std::memset(state, 0, this->padded * sizeof(Real));
  }

  void totals(const Items::Item& item, Real* state, Real* factor) const {
    walk<true>(item, state, factor);
  }

  void finish(const Items::Item& item, Real* state) const {
    walk<false>(item, state, nullptr);
    if (item.chunk != 0 || a.d_initial == nullptr) return;
    std::memcpy(a.d_initial + item.sequence * a.C + item.first_column, state,
                item.columns * sizeof(Real));
  }

 private:
  template <bool Totals>
  void walk(const Items::Item& item, Real* state, Real* factor) const {
    a.sequences.reverse ? rows<Totals, false>(item, state, factor)
                        : rows<Totals, true>(item, state, factor);
  }

  // Descending: in memory; in time they always descend.
  template <bool Totals, bool Descending>
  __attribute__((noinline)) void rows(const Items::Item& item, Real* state, Real* factor) const {
    const auto& s = a.sequences;
    const auto of_a = s.rows(a.a, item.sequence).shifted(item.first_column);
    const auto of_h = s.rows(a.h, item.sequence).shifted(item.first_column);
    const auto of_d = s.rows(a.d_h, item.sequence).shifted(item.first_column);
    const auto to_a = s.rows(a.d_a, item.sequence).shifted(item.first_column);
    const auto to_b = s.rows(a.d_b, item.sequence).shifted(item.first_column);
    const Real* first = a.initial == nullptr
                            ? nullptr
                            : a.initial + item.sequence * a.C + item.first_column;
    for (int64_t i = item.end - 1; i >= item.begin; --i)
      this->template row<Vectors, Descending>(
          item.columns, [&](auto panel, int64_t at) __attribute__((always_inline)) {
            const Vec conjugate = F::conjugate(panel.load(of_a[i] + at));
            const Vec d = panel.load(of_d[i] + at) + S::load(state + at);
            S::store(state + at, F::fma(conjugate, d, Vec{}));
            if constexpr (Totals) {
              S::store(factor + at, F::fma(conjugate, S::load(factor + at), Vec{}));
            } else {
              Vec h{};
              if (i > 0) h = panel.load(of_h[i - 1] + at);
              else if (first != nullptr) h = S::load(first + at, panel.count);
              panel.store(to_b[i] + at, d, streaming);
              panel.store(to_a[i] + at, F::fma(F::conjugate(h), d, Vec{}), streaming);
            }
          });
  }
};

}  // namespace flashrnn
