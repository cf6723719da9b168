// Attention over every prefix as a scan ("Attention as an RNN", Feng et al., 2024): forward.
//
// A work item is a sequence, a group of heads and a chunk of time. It goes through memory once and
// strictly in order, which is what hardware fetches ahead: row by row, its panels of channels one
// after the other; sums wait in the L1 cache. With more than one chunk there are three phases: the
// chunks' totals, a short pass that joins them, and the results.
#pragma once

#include "cpu/scan_prefix.hpp"

namespace flashrnn {

// The state of a head: maximum m, weights' sum u, weighted sum w [D]; all relative to m.
template <class Real>
struct AttentionState {
  Real *m, *u, *w;  // [G, N], [G, N], [G, N, D]
};

template <class Real, class Stored>
struct ScanAttentionArguments {
  Tensor<const Stored> scores, v;      // [B, T, N], [B, T, N, D]
  AttentionState<const Real> initial;  // or null
  Tensor<Stored> o;                    // [B, T, N, D], or null: only the last state is wanted
  AttentionState<Real> last;
  Real* saved;  // [slots, 2, N]: the reference and u before each block, or null
  Real* workspace;
  ParallelRegion region;
  Sequences sequences;
  int64_t N, D;
  Cut cut;
};

// The place of a sequence's block in what is saved; slots are never shared, and there are
// slots_of(...) in all (runtime/scan_attention.py).
inline int64_t slot_of(const Sequences& s, int64_t g, int64_t block) {
  if (s.offsets != nullptr) return s.offsets[g] / block_rows + g + block;
  return g * parts(s.T, block_rows) + block;
}

// What both directions share: work items, each worker's core, and the totals of chunks. Core: what
// one item is computed in, made of a Workspace, the number of heads and of channels.
template <class Arguments, class Core, class Real>
class AttentionItems {
 protected:
  // With a null workspace, only says how many numbers it needs.
  AttentionItems(const Arguments& a, Real* workspace, int64_t* needed)
      : a(a), items(a.sequences, a.cut, a.N), memory{workspace} {
    if (items.chunks > 1) {
      const int64_t rows = a.sequences.count * items.chunks * a.N;
      totals = {memory.take(rows), memory.take(rows), memory.take(rows * a.D)};
    }
    Workspace<Real> one{nullptr};
    Core(one, items.per_core, a.D);
    per_core = one.used;
    cores = memory.take(per_core * a.cut.threads);
    if (needed != nullptr) *needed = memory.used;
  }

  template <class Body>
  void each_item(Body&& body) const {
    parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t worker) {
      const auto item = items[i];
      if (item.exists()) body(item, core_of(worker, item));
    });
  }

  // The first item of each row of chunks.
  template <class Body>
  void each_row(Body&& body) const {
    parallel_for(a.region, a.cut.threads, items.count() / items.chunks,
                 [&](int64_t i, int64_t worker) {
                   const auto item = items[i * items.chunks];
                   body(item, core_of(worker, item));
                 });
  }

  Core core_of(int64_t worker, const Items::Item& item) const {
    Workspace<Real> own{cores + worker * per_core};
    return Core(own, item.columns, a.D);
  }

  AttentionState<Real> total(const Items::Item& item, int64_t chunk) const {
    const int64_t at = (item.sequence * items.chunks + chunk) * a.N + item.first_column;
    return {totals.m + at, totals.u + at, totals.w + at * a.D};
  }

  int64_t state_at(const Items::Item& item) const {
    return item.sequence * a.N + item.first_column;
  }

  const Arguments& a;
  Items items;

 private:
  Workspace<Real> memory;
  AttentionState<Real> totals{};
  int64_t per_core = 0;
  Real* cores = nullptr;
};

template <class S>
struct PrefixCore {
  using Real = typename S::Real;
  Block<S> block;
  Prefix<S> prefix;

  PrefixCore(Workspace<Real>& memory, int64_t n, int64_t D)
      : block(memory, n), prefix(memory, n, D) {}

  void begin(const Real* m, const Real* u, const Real* w) const {
    block.begin(m);
    prefix.begin(m, u, w);
  }

  // Into row `head` of a state.
  void end(const AttentionState<Real>& to, int64_t head) const {
    block.highest(block.first);
    prefix.end(block.first, to.m + head, to.u + head, to.w + head * prefix.D);
  }
};

// Streaming: whether results may bypass the caches. Ahead: how many bytes further on values are
// fetched, 0 for none.
template <class S, class Stored, int Vectors, int Heads, bool Streaming, int Ahead>
class ScanAttention
    : AttentionItems<ScanAttentionArguments<typename S::Real, Stored>, PrefixCore<S>,
                     typename S::Real> {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  using Core = PrefixCore<S>;
  using Base = AttentionItems<ScanAttentionArguments<Real, Stored>, Core, Real>;
  using Base::a;
  using Base::items;
  using Base::state_at;
  using Base::total;

 public:
  using Arguments = ScanAttentionArguments<Real, Stored>;

  ScanAttention(const Arguments& a, Real* workspace, int64_t* needed = nullptr)
      : Base(a, workspace, needed) {}

  void run() {
    if (a.o) results = Streaming && may_stream<S>(a.o, a.D) ? streamed : cached;
    if (items.chunks > 1) {
      this->each_item([&](const Items::Item& item, const Core& core) {
        if (item.last()) return;
        core.begin(nullptr, nullptr, nullptr);
        walk(core, item, nullptr, none);
        core.end(total(item, item.chunk), 0);
      });
      this->each_row([&](const Items::Item& item, const Core& core) { join(core, item); });
    }
    this->each_item([&](const Items::Item& item, const Core& core) { finish(core, item); });
  }

 private:
  void begin(const Core& core, const Items::Item& item) const {
    const int64_t at = state_at(item);
    if (a.initial.m == nullptr) return core.begin(nullptr, nullptr, nullptr);
    core.begin(a.initial.m + at, a.initial.u + at, a.initial.w + at * a.D);
  }

  // From the totals of all chunks before the last to the prefix that each chunk follows.
  void join(const Core& core, const Items::Item& item) const {
    const Prefix<S>& prefix = core.prefix;
    begin(core, item);
    const int64_t n = item.columns;
    for (int64_t c = 0; c + 1 < item.chunks; ++c) {
      const auto t = total(item, c);
      for (int64_t j = 0; j < n; j += S::lanes) {
        const Vec own = S::load(prefix.m + j), theirs = S::load(t.m + j, n - j);
        const Vec maximum = math::maximum<S>(own, theirs);
        S::store(core.block.first + j, maximum);
        S::store(prefix.factor + j, ratio<S>(own, maximum));
        S::store(prefix.other + j, ratio<S>(theirs, maximum));
        S::store(core.block.local + j, S::load(t.u + j, n - j));
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < prefix.padded; ++d)
          prefix.local[j * prefix.padded + d] = d < a.D ? t.w[j * a.D + d] : 0;
      prefix.join(core.block.first, core.block.local, prefix.local);
      prefix.end(t.m, t.u, t.w);
    }
  }

  void finish(const Core& core, const Items::Item& item) const {
    if (item.chunk == 0) {
      begin(core, item);
    } else {
      const auto from = total(item, item.chunk - 1);
      core.begin(from.m, from.u, from.w);
    }
    walk(core, item, a.saved, results);
    if (item.last()) core.end(a.last, state_at(item));
  }

  enum Results { none, cached, streamed };

  // All rows of the item, from the prefix in `core` to the one after them.
  void walk(const Core& core, const Items::Item& item, Real* saved, Results results) const {
    const bool descending = a.sequences.reverse;
    if (results == none) return descending ? rows<none, true>(core, item, saved)
                                           : rows<none, false>(core, item, saved);
    if (results == cached) return descending ? rows<cached, true>(core, item, saved)
                                             : rows<cached, false>(core, item, saved);
    if constexpr (Streaming) {
      descending ? rows<streamed, true>(core, item, saved)
                 : rows<streamed, false>(core, item, saved);
      fence();
    }
  }

  // Descending: in memory; in time they ascend.
  template <Results results, bool Descending>
  __attribute__((noinline)) void rows(const Core& core, const Items::Item& item, Real* saved) const {
    const Block<S> block = core.block;
    const Prefix<S> prefix = core.prefix;
    const int64_t n = item.columns, g = item.sequence, first = item.first_column, D = a.D;
    const auto scores = a.sequences.rows(a.scores, g).shifted(first);
    const auto v = a.sequences.rows(a.v, g).shifted(first * D);
    const auto o = a.sequences.rows(a.o, g).shifted(first * D);
    for (int64_t j = 0; j < n; ++j) prefix.other[j] = 1;
    for (int64_t i = item.begin; i < item.end; i += block_rows) {
      const int64_t count = item.end - i < block_rows ? item.end - i : block_rows;
      if (saved != nullptr) {
        Real* at = saved + 2 * slot_of(a.sequences, g, i / block_rows) * a.N + first;
        std::memcpy(at, prefix.m, n * sizeof(Real));
        std::memcpy(at + a.N, prefix.u, n * sizeof(Real));
      }
      const RowSet changes = block.scan(scores, i, count, prefix.m, prefix.u);
      prefix.open(prefix.other);
      for (int64_t r = 0; r < count; ++r) {
        if (__builtin_expect(contains(changes, r), 0)) prefix.rescale(block.scale + r * n);
        const Stored* from = v[i + r];
        Stored* to = results == none ? nullptr : o[i + r];
        head_panels<S, Vectors, Heads, Descending>(n, D, [&](auto panel, int64_t j)
                                                             __attribute__((always_inline)) {
          const int64_t at = j * prefix.padded + panel.at, column = j * D + panel.at;
          row<results, Descending>(panel, block, r * n + j, prefix.local + at, prefix.before + at,
                                   from + column, results == none ? nullptr : to + column);
        });
      }
      std::memcpy(prefix.factor, block.factor, n * sizeof(Real));
      prefix.join(block.reference, block.local, prefix.local);
    }
  }

  // A panel of one row. scalar: of its first head in the block; local, before: the block's sums so
  // far and those before it, both in the row's scale.
  template <Results results, bool Descending, class P>
  static FLASHRNN_INLINE void row(P panel, const Block<S>& block, int64_t scalar, Real* local,
                                  const Real* before, const Stored* v, Stored* o) {
    unroll_along<P::heads, Descending>([&](auto h) __attribute__((always_inline)) {
      const Vec p = S::broadcast(block.p[scalar + h]);
      Vec inverse{};
      if constexpr (results != none) inverse = S::broadcast(block.inverse[scalar + h]);
      unroll_along<P::vectors, Descending>([&](auto vector) __attribute__((always_inline)) {
        constexpr int k = (h * P::vectors + vector) * S::lanes;
        fetch_ahead<Ahead, Descending, k>(v + k);
        const Vec sum = S::fma(p, panel.load(v + k), S::load(local + k));
        S::store(local + k, sum);
        if constexpr (results != none)
          panel.store(o + k, inverse * (S::load(before + k) + sum), results == streamed);
      });
    });
  }

  Results results = none;
};

}  // namespace flashrnn
