// Attention over every prefix as a scan: backward.
//
// With S_i = d_o_i / u_i + e^(r_i - r_{i+1}) S_{i+1} (a vector per head) and
// sigma_i = <d_o_i, o_i> / u_i + e^(r_i - r_{i+1}) sigma_{i+1}, r the reference of the weights:
//   d_v_i = e^(s_i - r_i) S_i,   d_s_i = e^(s_i - r_i) (<v_i, S_i> - sigma_i).
// No factor is more than e^slack, so nothing overflows. The scalars of a block are computed again from
// r and u before it, to the same bits as in the forward pass. Sums are kept as there: 64 rows
// locally, the rest with what rounding loses. Gradients of the last state are S and -sigma
// behind the last row; what they do through its maximum goes to the score that attained it.
#pragma once

#include "cpu/scan_attention.hpp"

namespace flashrnn {

template <class Real, class Stored>
struct ScanAttentionBackwardArguments {
  Tensor<const Stored> scores, v, o, d_o;  // o and d_o null: only the last state has a gradient
  AttentionState<const Real> initial, last, d_last;  // initial or null; d_last or null
  const Real* saved;
  Tensor<Stored> d_scores, d_v;
  AttentionState<Real> d_initial;  // or null
  Real* workspace;
  ParallelRegion region;
  Sequences sequences;
  int64_t N, D;
  Cut cut;
};

// The sums over what follows: m is the reference they are relative to, u stands for sigma and w for
// S.
template <class S>
struct SuffixCore {
  using Real = typename S::Real;
  Block<S> block;
  Prefix<S> suffix;
  Real* dots;    // [block_rows][n]: <v_i, S_i> - sigma_i, but for sigma behind the block
  Real* behind;  // [n]: sigma behind the block, in the scale of a row
  // [n][padded], a vector at the beginning of each panel, whose lanes are still to be summed:
  Real* sigma;  // sigma's sum within the block
  Real* terms;  // a row's dots

  SuffixCore(Workspace<Real>& memory, int64_t n, int64_t D)
      : block(memory, n), suffix(memory, n, D) {
    dots = memory.take(block_rows * n + S::lanes);
    behind = memory.take(n + S::lanes);
    for (Real** x : {&sigma, &terms}) *x = memory.take(n * suffix.padded);
  }
};

template <class S, class Stored, int Vectors, int Heads, bool Streaming, int Ahead>
class ScanAttentionBackward
    : AttentionItems<ScanAttentionBackwardArguments<typename S::Real, Stored>, SuffixCore<S>,
                     typename S::Real> {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  using Core = SuffixCore<S>;
  using Base = AttentionItems<ScanAttentionBackwardArguments<Real, Stored>, Core, Real>;
  using Base::a;
  using Base::items;
  using Base::state_at;
  using Base::total;
  enum Results { none, cached, streamed };

 public:
  using Arguments = ScanAttentionBackwardArguments<Real, Stored>;

  ScanAttentionBackward(const Arguments& a, Real* workspace, int64_t* needed = nullptr)
      : Base(a, workspace, needed) {}

  void run() {
    results = Streaming && may_stream<S>(a.d_v, a.D) ? streamed : cached;
    if (items.chunks > 1) {
      this->each_item([&](const Items::Item& item, const Core& core) {
        if (item.chunk == 0) return;
        core.suffix.begin(nullptr, nullptr, nullptr);
        relative_to_end(core, item);
        if (a.d_o) walk<true, none>(core, item);
        else relative_to_begin(core, item);
        const auto to = total(item, item.chunk);
        core.suffix.end(to.m, to.u, to.w);
      });
      this->each_row([&](const Items::Item& item, const Core& core) { join(core, item); });
    }
    this->each_item([&](const Items::Item& item, const Core& core) { finish(core, item); });
    if (a.d_last.m != nullptr)  // once all gradients are written
      for (int64_t i = 0; i < items.count(); i += items.chunks) through_maximum(items[i]);
  }

 private:
  const Real* saved_at(const Items::Item& item, int64_t row) const {
    const int64_t slot = slot_of(a.sequences, item.sequence, row / block_rows);
    return a.saved + 2 * slot * a.N + item.first_column;
  }

  // The suffix behind the last row of the sequence.
  void begin(const Core& core, const Items::Item& item) const {
    const int64_t at = state_at(item), n = item.columns;
    const auto& d = a.d_last;
    core.suffix.begin(a.last.m + at, d.u == nullptr ? a.last.m + at : d.u + at,
                      d.w == nullptr ? nullptr : d.w + at * a.D);
    for (int64_t j = 0; j < n; ++j) core.suffix.u[j] = d.u == nullptr ? 0 : -d.u[at + j];
  }

  // What an empty suffix behind this chunk is relative to: the reference of its last row.
  void relative_to_end(const Core& core, const Items::Item& item) const {
    const int64_t start = (item.end - 1) / block_rows * block_rows;
    scan(core, item, start, item.end - start);
    std::memcpy(core.suffix.m, core.block.reference, item.columns * sizeof(Real));
  }

  void relative_to_begin(const Core& core, const Items::Item& item) const {
    scan(core, item, item.begin, 1);
    std::memcpy(core.suffix.m, core.block.first, item.columns * sizeof(Real));
  }

  RowSet scan(const Core& core, const Items::Item& item, int64_t row, int64_t rows) const {
    const auto scores = a.sequences.rows(a.scores, item.sequence).shifted(item.first_column);
    const Real* before = saved_at(item, row);
    return core.block.scan(scores, row, rows, before, before + a.N);
  }

  // From each chunk's own sums to the suffix that follows the chunk before it.
  void join(const Core& core, const Items::Item& item) const {
    const Prefix<S>& suffix = core.suffix;
    begin(core, item);
    const int64_t n = item.columns;
    for (int64_t j = 0; j < n; ++j) suffix.other[j] = 1;
    for (int64_t c = item.chunks - 1; c > 0; --c) {
      const auto t = total(item, c);
      for (int64_t j = 0; j < n; j += S::lanes) {
        const Vec maximum = S::load(t.m + j, n - j);
        S::store(core.block.first + j, maximum);
        S::store(suffix.factor + j, ratio<S>(maximum, S::load(suffix.m + j)));
        S::store(core.block.local + j, S::load(t.u + j, n - j));
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < suffix.padded; ++d)
          suffix.local[j * suffix.padded + d] = d < a.D ? t.w[j * a.D + d] : 0;
      suffix.join(core.block.first, core.block.local, suffix.local);
      suffix.end(t.m, t.u, t.w);
    }
  }

  void finish(const Core& core, const Items::Item& item) const {
    if (item.last()) {
      begin(core, item);
    } else {
      const auto from = total(item, item.chunk + 1);
      core.suffix.begin(from.m, from.u, from.w);
    }
    if (results == cached) {
      a.d_o ? walk<true, cached>(core, item) : walk<false, cached>(core, item);
    } else if constexpr (Streaming) {
      a.d_o ? walk<true, streamed>(core, item) : walk<false, streamed>(core, item);
      fence();
    }
    if (item.chunk == 0 && a.d_initial.m != nullptr) initial(core, item);
  }

  // Outputs: whether outputs have a gradient.
  template <bool Outputs, Results results>
  void walk(const Core& core, const Items::Item& item) const {
    a.sequences.reverse ? rows<Outputs, results, false>(core, item)
                        : rows<Outputs, results, true>(core, item);
  }

  // Descending: in memory; in time they always descend.
  template <bool Outputs, Results results, bool Descending>
  __attribute__((noinline)) void rows(const Core& core, const Items::Item& item) const {
    const Block<S> block = core.block;
    const Prefix<S> suffix = core.suffix;
    const int64_t n = item.columns, D = a.D, first = item.first_column * D;
    const auto v = a.sequences.rows(a.v, item.sequence).shifted(first);
    const auto o = a.sequences.rows(a.o, item.sequence).shifted(first);
    const auto d_o = a.sequences.rows(a.d_o, item.sequence).shifted(first);
    const auto d_v = a.sequences.rows(a.d_v, item.sequence).shifted(first);
    for (int64_t j = 0; j < n; ++j) suffix.other[j] = 1;
    const int64_t summed = Heads % 4 == 0 ? heads_together<S, Vectors, Heads>(n, D) : 0;
    const int64_t blocks = parts(item.end - item.begin, block_rows);
    for (int64_t b = blocks - 1; b >= 0; --b) {
      const int64_t i = item.begin + b * block_rows;
      const int64_t count = item.end - i < block_rows ? item.end - i : block_rows;
      const RowSet changes = scan(core, item, i, count);
      relative_to(block.reference, suffix);  // the last row
      suffix.open(suffix.factor);
      std::memset(core.sigma, 0, n * suffix.padded * sizeof(Real));
      for (int64_t j = 0; j < n; ++j) core.behind[j] = suffix.factor[j] * suffix.u[j];
      for (int64_t r = count - 1; r >= 0; --r) {
        const Row of{Outputs ? d_o[i + r] : nullptr, Outputs ? o[i + r] : nullptr,
                     results == none ? nullptr : v[i + r], results == none ? nullptr : d_v[i + r]};
        head_panels<S, Vectors, Heads, Descending>(n, D, [&](auto panel, int64_t j)
                                                             __attribute__((always_inline)) {
          const int64_t at = j * suffix.padded + panel.at;
          row<Outputs, results, Descending>(panel, block, r * n + j, of, j * D + panel.at,
                                            suffix.local + at, suffix.before + at,
                                            core.sigma + at, core.terms + at,
                                            core.dots + r * n + j);
        });
        if constexpr (results != none) add_up(core.terms, suffix, core.dots + r * n, summed);
        if (__builtin_expect(r > 0 && contains(changes, r), 0)) rescale(core, block.scale + r * n);
      }
      scalars<results != none>(core, item, i, count, changes);
      relative_to(block.first, suffix);
      suffix.join(block.first, block.local, suffix.local);
    }
  }

  // suffix.factor = e^(reference - what the suffix is relative to)
  static void relative_to(const Real* reference, const Prefix<S>& suffix) {
    for (int64_t j = 0; j < suffix.n; j += S::lanes)
      S::store(suffix.factor + j, ratio<S>(S::load(reference + j), S::load(suffix.m + j)));
  }

  // From a row that changes the scale to the row before it.
  __attribute__((noinline)) void rescale(const Core& core, const Real* scale) const {
    const Prefix<S>& suffix = core.suffix;
    suffix.rescale(scale);
    for (int64_t j = 0; j < suffix.n; ++j)
      if (scale[j] != 1)
        panels<S, Vectors>(a.D, [&](auto panel) {
          Real* sigma = core.sigma + j * suffix.padded + panel.at;
          S::store(sigma, S::broadcast(scale[j]) * S::load(sigma));
        });
  }

  struct Row {
    const Stored *d_o, *o, *v;
    Stored* d_v;
  };

  // A panel of one row. scalar: of its first head in the block; column: in the row; local, after:
  // the block's sums so far and those behind it, both in the row's scale. dots: of its first head; four
  // heads are summed here, of fewer the terms are left.
  template <bool Outputs, Results results, bool Descending, class P>
  static FLASHRNN_INLINE void row(P panel, const Block<S>& block, int64_t scalar, const Row& row,
                                  int64_t column, Real* local, const Real* after, Real* sigmas,
                                  Real* terms, Real* dots) {
    constexpr bool by_four = P::heads % 4 == 0;
    Vec of_head[P::heads];
    unroll_along<P::heads, Descending>([&](auto h) __attribute__((always_inline)) {
      const Vec inverse = S::broadcast(block.inverse[scalar + h]);
      const Vec p = S::broadcast(block.p[scalar + h]);
      Vec sum_o{}, sum_v{}, sigma{};
      unroll_along<P::vectors, Descending>([&](auto vector) __attribute__((always_inline)) {
        constexpr int k = (h * P::vectors + vector) * S::lanes;
        Vec sum = S::load(local + k);
        if constexpr (Outputs) {
          fetch_ahead<Ahead, Descending, k>(row.d_o + column + k);
          fetch_ahead<Ahead, Descending, k>(row.o + column + k);
          const Vec d = panel.load(row.d_o + column + k);
          sum_o = S::fma(d, panel.load(row.o + column + k), sum_o);
          sum = S::fma(inverse, d, sum);
          S::store(local + k, sum);
        }
        if constexpr (results != none) {
          sum += S::load(after + k);
          fetch_ahead<Ahead, Descending, k>(row.v + column + k);
          sum_v = S::fma(panel.load(row.v + column + k), sum, sum_v);
          panel.store(row.d_v + column + k, p * sum, results == streamed);
        }
      });
      constexpr int k = h * P::vectors * S::lanes;
      if constexpr (Outputs) {
        sigma = S::fma(inverse, sum_o, S::load(sigmas + k));
        S::store(sigmas + k, sigma);
      }
      if constexpr (results != none) {
        if constexpr (by_four) of_head[h] = sum_v - sigma;
        else S::store(terms + k, sum_v - sigma);
      }
    });
    if constexpr (results != none && by_four)
      unroll<P::heads / 4>([&](auto q) __attribute__((always_inline)) {
        sums_of_four<S>(of_head + 4 * q, dots + 4 * q);
      });
  }

  // What is kept for the panels of n heads, from `first` on, summed for each.
  void add_up(const Real* kept, const Prefix<S>& suffix, Real* sums, int64_t first = 0) const {
    const auto of_head = [&](int64_t j) __attribute__((always_inline)) {
      Vec sum{};
      panels<S, Vectors>(a.D, [&](auto panel) __attribute__((always_inline)) {
        sum += S::load(kept + j * suffix.padded + panel.at);
      });
      return sum;
    };
    int64_t j = first;
    for (; j + 4 <= suffix.n; j += 4) {
      const Vec four[] = {of_head(j), of_head(j + 1), of_head(j + 2), of_head(j + 3)};
      sums_of_four<S>(four, sums + j);
    }
    for (; j < suffix.n; ++j) sums[j] = sum_of<Real, sizeof(Vec)>(of_head(j));
  }

  // The gradients of the scores; leaves the block's own sigma in block.local.
  template <bool Scores>
  void scalars(const Core& core, const Items::Item& item, int64_t i, int64_t rows,
               RowSet changes) const {
    const Block<S>& block = core.block;
    const int64_t n = item.columns;
    add_up(core.sigma, core.suffix, block.local);
    if constexpr (!Scores) return;
    const auto to = a.sequences.rows(a.d_scores, item.sequence).shifted(item.first_column);
    for (int64_t j = 0; j < n; j += S::lanes) {
      Vec behind = S::load(core.behind + j);
      for (int64_t r = rows - 1; r >= 0; --r) {
        const int64_t k = r * n + j;
        const Vec d = S::load(core.dots + k) - behind;
        Memory<S, Stored>::store(to[i + r] + j, S::load(block.p + k) * d, n - j);
        if (__builtin_expect(contains(changes, r), 0)) behind *= S::load(block.scale + k);
      }
    }
  }

  // Gradients of the initial state, but what comes through the maximum.
  void initial(const Core& core, const Items::Item& item) const {
    const Prefix<S>& suffix = core.suffix;
    const int64_t at = state_at(item);
    for (int64_t j = 0; j < item.columns; ++j) {
      const Vec start = S::broadcast(a.initial.m[at + j]);
      const Real factor = ratio<S>(start, S::broadcast(suffix.m[j]))[0];
      const Real* w = a.initial.w + (at + j) * a.D;
      Real* d_w = a.d_initial.w + (at + j) * a.D;
      Real dot = 0;
      for (int64_t d = 0; d < a.D; ++d) {
        d_w[d] = factor * suffix.w[j * suffix.padded + d];
        dot += w[d] * d_w[d];
      }
      a.d_initial.u[at + j] = -factor * suffix.u[j];
      a.d_initial.m[at + j] = dot - factor * a.initial.u[at + j] * suffix.u[j];
    }
  }

  // d_m - <w, d_w> - u d_u of the last state, for whoever attained the maximum first.
  void through_maximum(const Items::Item& item) const {
    const auto scores = a.sequences.rows(a.scores, item.sequence).shifted(item.first_column);
    const auto to = a.sequences.rows(a.d_scores, item.sequence).shifted(item.first_column);
    const int64_t length = a.sequences.length(item.sequence);
    for (int64_t j = 0; j < item.columns; ++j) {
      const int64_t at = state_at(item) + j;
      const Real m = a.last.m[at];
      Real d = a.d_last.m[at] - a.last.u[at] * a.d_last.u[at];
      for (int64_t k = at * a.D; k < (at + 1) * a.D; ++k) d -= a.last.w[k] * a.d_last.w[k];
      if (a.initial.m != nullptr && a.initial.m[at] == m) {
        if (a.d_initial.m != nullptr) a.d_initial.m[at] += d;
        continue;
      }
      if (m == -std::numeric_limits<Real>::infinity()) continue;  // every score is masked
      for (int64_t i = 0; i < length; ++i)
        if (Memory<S, Stored>::load(scores[i] + j, 1)[0] == m) {
          Stored* x = to[i] + j;
          Memory<S, Stored>::store(x, Memory<S, Stored>::load(x, 1) + S::broadcast(d), 1);
          break;
        }
    }
  }

  Results results = cached;
};

}  // namespace flashrnn
