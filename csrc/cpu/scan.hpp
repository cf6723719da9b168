// What every scan over time shares: sequences and the order of their rows, the cut into chunks,
// panels of channels, and sums that keep what rounding loses.
#pragma once

#include "cpu/math.hpp"
#include "cpu/panels.hpp"
#include "cpu/storage.hpp"

namespace flashrnn {

// Rows of one sequence in the order in which they are taken.
template <class T>
struct Rows {
  T* base;
  int64_t stride;

  FLASHRNN_INLINE T* operator[](int64_t i) const { return base + i * stride; }
  Rows shifted(int64_t columns) const { return {base + columns, stride}; }
};

// A tensor whose rows are steps of time; strides in numbers.
template <class T>
struct Tensor {
  T* data;
  int64_t per_batch, per_step;

  explicit operator bool() const { return data != nullptr; }
};

// `count` sequences of T steps, a row of the batch each; or packed behind each other in one row,
// from offsets[g] to offsets[g + 1]. Arguments of every scan.
struct Sequences {
  const int64_t* offsets;
  int64_t count, T, reverse;

  int64_t length(int64_t g) const {
    return offsets == nullptr ? T : offsets[g + 1] - offsets[g];
  }

  template <class T_>
  Rows<T_> rows(const Tensor<T_>& x, int64_t g) const {
    if (x.data == nullptr) return {nullptr, 0};
    T_* base = x.data + (offsets == nullptr ? g * x.per_batch : offsets[g] * x.per_step);
    if (!reverse) return {base, x.per_step};
    return {base + (length(g) - 1) * x.per_step, -x.per_step};
  }
};

// How the work is cut. Arguments of every scan; attention has `streaming` compiled in instead.
struct Cut {
  int64_t columns_per_core, t_per_chunk, threads, streaming;
};

constexpr int64_t parts(int64_t x, int64_t size) { return (x + size - 1) / size; }

// Work items: sequences × groups of columns × chunks of time.
struct Items {
  Sequences sequences;
  int64_t columns, per_core, per_chunk, groups, chunks;

  Items(const Sequences& s, const Cut& cut, int64_t columns)
      : sequences(s),
        columns(columns),
        per_core(cut.columns_per_core),
        per_chunk(cut.t_per_chunk),
        groups(parts(columns, per_core)),
        chunks(s.T > per_chunk ? parts(s.T, per_chunk) : 1) {}

  struct Item {
    int64_t sequence, first_column, columns, chunk, chunks, begin, end;
    bool exists() const { return chunk < chunks; }
    bool last() const { return chunk == chunks - 1; }
  };

  int64_t count() const { return sequences.count * groups * chunks; }

  Item operator[](int64_t index) const {
    const int64_t chunk = index % chunks, group = index / chunks % groups;
    const int64_t g = index / (chunks * groups), length = sequences.length(g);
    const int64_t own = length > per_chunk ? parts(length, per_chunk) : 1;
    const int64_t first = group * per_core, begin = chunk * per_chunk;
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    return {g,     first, least(per_core, columns - first),
            chunk, own,   begin,
            least(length, begin + per_chunk)};
  }
};

// unroll, from the last to the first where `Descending`.
template <int N, bool Descending, class Body>
FLASHRNN_INLINE void unroll_along(Body&& body) {
  unroll<N>([&](auto i) __attribute__((always_inline)) {
    body(std::integral_constant<int, Descending ? N - 1 - i : i>{});
  });
}

// body(panel) for panels of `Widest` vectors, then of one, that together cover `count` numbers;
// panel.at is where it begins, panel.count how many numbers its last vector has.
template <class S, int V, bool Masked_, int Heads = 1>
struct Panel {
  static constexpr int vectors = V, heads = Heads;
  static constexpr bool masked = Masked_;
  int64_t at, count;

  template <class Stored>
  FLASHRNN_INLINE typename S::Vec load(const Stored* p) const {
    if constexpr (Masked_) return Memory<S, Stored>::load(p, count);
    return Memory<S, Stored>::load(p);
  }

  template <class Stored>
  FLASHRNN_INLINE void store(Stored* p, typename S::Vec v, bool streaming) const {
    if constexpr (Masked_) return Memory<S, Stored>::store(p, v, count);
    if (streaming) return Memory<S, Stored>::stream(p, v);
    Memory<S, Stored>::store(p, v);
  }
};

// `Descending`: from the last number to the first. Rows that are gone through from the last to the
// first must be, too: hardware fetches ahead along one direction only (a third of the bandwidth was
// left where rows descended and their numbers ascended).
template <class S, int Widest, bool Descending = false, class Body>
FLASHRNN_INLINE void panels(int64_t count, Body&& body) {
  constexpr int64_t width = Widest * S::lanes;
  const int64_t wide = count / width * width, whole = count / S::lanes * S::lanes;
  const auto all_wide = [&]() __attribute__((always_inline)) {
    for (int64_t at = 0; at < wide; at += width)
      body(Panel<S, Widest, false>{Descending ? wide - width - at : at, S::lanes});
  };
  const auto single = [&]() __attribute__((always_inline)) {
    if constexpr (Widest > 1)
      for (int64_t at = wide; at < whole; at += S::lanes)
        body(Panel<S, 1, false>{Descending ? wide + whole - S::lanes - at : at, S::lanes});
  };
  if constexpr (!Descending) all_wide(), single();
  if (whole < count) body(Panel<S, 1, true>{whole, count - whole});
  if constexpr (Descending) single(), all_wide();
}

// How many of n heads of D channels share panels with neighbours: whole groups of `Heads`, where a
// panel of `Vectors` is a whole head.
template <class S, int Vectors, int Heads>
FLASHRNN_INLINE int64_t heads_together(int64_t n, int64_t D) {
  return Heads > 1 && D == Vectors * S::lanes ? n / Heads * Heads : 0;
}

// body(panel, head) for the panels of n heads of D channels.
template <class S, int Vectors, int Heads, bool Descending, class Body>
FLASHRNN_INLINE void head_panels(int64_t n, int64_t D, Body&& body) {
  const int64_t together = heads_together<S, Vectors, Heads>(n, D);
  const auto grouped = [&]() __attribute__((always_inline)) {
    if constexpr (Heads > 1)
      for (int64_t j = 0; j < together; j += Heads)
        body(Panel<S, Vectors, false, Heads>{0, S::lanes}, Descending ? together - Heads - j : j);
  };
  if constexpr (!Descending) grouped();
  for (int64_t j = together; j < n; ++j)
    panels<S, Vectors, Descending>(D, [&](auto panel) __attribute__((always_inline)) {
      body(panel, Descending ? together + n - 1 - j : j);
    });
  if constexpr (Descending) grouped();
}

// Fetches what is read `Bytes` further on from p, which begins a vector that is `number` numbers into
// its panel: once per line; nothing where Bytes is 0.
template <int Bytes, bool Descending, int number, class Stored>
FLASHRNN_INLINE void fetch_ahead(const Stored* p) {
  constexpr int size = sizeof(Stored);
  if constexpr (Bytes > 0 && number * size % 64 == 0)
    __builtin_prefetch(p + (Descending ? -Bytes : Bytes) / size);
}

// total + x with what the sum loses added to `lost` (Knuth's TwoSum).
template <class Vec>
FLASHRNN_INLINE void add_exactly(Vec& total, Vec& lost, Vec x) {
  const Vec sum = total + x, part = sum - total;
  lost = (total - (sum - part)) + (x - part);
  total = sum;
}

// total, lost = factor * (total + lost) + x
template <class S>
FLASHRNN_INLINE void fold(typename S::Real* total, typename S::Real* lost, typename S::Vec factor,
                          typename S::Vec x) {
  auto t = factor * S::load(total), l = factor * S::load(lost);
  add_exactly(t, l, l + x);
  S::store(total, t);
  S::store(lost, l);
}

// Whether results may bypass the caches: their rows must be aligned to whole vectors.
template <class S, class Stored>
bool may_stream(const Tensor<Stored>& x, int64_t width) {
  const int64_t bytes = S::lanes * sizeof(Stored);
  return reinterpret_cast<intptr_t>(x.data) % bytes == 0 && width % S::lanes == 0 &&
         x.per_batch % S::lanes == 0 && x.per_step % S::lanes == 0;
}

}  // namespace flashrnn
