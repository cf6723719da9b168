// Attention over every prefix as a scan ("Attention as an RNN", Feng et al., 2024): forward.
//
// A work item is a sequence, a group of heads and a chunk of time. It goes through memory once and
// strictly in order, which is what hardware fetches ahead: row by row, its panels of channels one
// after the other; sums wait in the L1 cache. With more than one chunk there are three phases: the
// chunks' totals, a short pass that joins them, and the results.
#pragma once

#include "cpu/scan_block.hpp"

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
  Real* saved;  // [slots, 2, N]: m and u before each block, or null
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

// Sums over a prefix for a group of heads, relative to the reference m, with what rounding has lost.
template <class S>
struct Prefix {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  int64_t n, D, padded;
  Real *m, *u, *u_lost, *factor, *other;  // [n]
  Real *w, *w_lost;                       // [n][padded]
  // [n][padded], of a block of rows: its sums, and w in the scale of the row that is at work
  Real *local, *before;

  Prefix(Workspace<Real>& memory, int64_t n, int64_t D)
      : n(n), D(D), padded(round_up(D, S::lanes)) {
    for (Real** x : {&m, &u, &u_lost, &factor, &other}) *x = memory.take(n + S::lanes);
    // Where sums that are stored and others that are read agreed in the last 12 bits of their
    // addresses, a row took two to three times as long in some pages (Zen 4): so half a page lies
    // between them.
    constexpr int64_t page = 4096 / sizeof(Real);
    before = memory.take(n * padded + (page + page / 2 - n * padded % page) % page);
    for (Real** x : {&local, &w, &w_lost}) *x = memory.take(n * padded);
  }

  // From a state of n heads; null for the empty prefix.
  void begin(const Real* m_, const Real* u_, const Real* w_) const {
    for (int64_t j = 0; j < n + S::lanes; ++j) {
      const bool given = m_ != nullptr && j < n;
      m[j] = given ? m_[j] : -std::numeric_limits<Real>::infinity();
      u[j] = given ? u_[j] : 0;
      u_lost[j] = 0;
    }
    for (int64_t k = 0; k < n * padded; ++k) {
      const int64_t head = k / padded, d = k % padded;
      w[k] = w_ != nullptr && d < D ? w_[head * D + d] : 0;
      w_lost[k] = 0;
    }
  }

  // Before a block of rows: nothing of it is summed yet, and w is taken in the scale of its first.
  void open(const Real* scale) const {
    for (int64_t j = 0; j < n; ++j) {
      const Vec f = S::broadcast(scale[j]);
      for (int64_t k = j * padded; k < (j + 1) * padded; k += S::lanes) {
        S::store(before + k, f * S::load(w + k));
        S::store(local + k, Vec{});
      }
    }
  }

  // A row of the block has another scale than what came before it.
  __attribute__((noinline)) void rescale(const Real* scale) const {
    for (int64_t j = 0; j < n; ++j) {
      if (scale[j] == 1) continue;
      const Vec f = S::broadcast(scale[j]);
      for (int64_t k = j * padded; k < (j + 1) * padded; k += S::lanes) {
        S::store(before + k, f * S::load(before + k));
        S::store(local + k, f * S::load(local + k));
      }
    }
  }

  // The sums become factor * sums + other * (u, w), relative to new_m.
  void join(const Real* new_m, const Real* more_u, const Real* more_w) const {
    for (int64_t j = 0; j < n; j += S::lanes)
      fold<S>(u + j, u_lost + j, S::load(factor + j), S::load(other + j) * S::load(more_u + j));
    for (int64_t j = 0; j < n; ++j) {
      const Vec f = S::broadcast(factor[j]), g = S::broadcast(other[j]);
      for (int64_t k = j * padded; k < (j + 1) * padded; k += S::lanes)
        fold<S>(w + k, w_lost + k, f, g * S::load(more_w + k));
      m[j] = new_m[j];
    }
  }

  void end(Real* m_, Real* u_, Real* w_) const {
    std::memcpy(m_, m, n * sizeof(Real));
    std::memcpy(u_, u, n * sizeof(Real));
    for (int64_t j = 0; j < n; ++j) std::memcpy(w_ + j * D, w + j * padded, D * sizeof(Real));
  }

  // As a state, relative to its maximum.
  void end(const Real* maximum, Real* m_, Real* u_, Real* w_) const {
    for (int64_t j = 0; j < n; ++j) {
      const Real f = ratio<S>(S::broadcast(m[j]), S::broadcast(maximum[j]))[0];
      m_[j] = maximum[j];
      u_[j] = f * u[j];
      for (int64_t d = 0; d < D; ++d) w_[j * D + d] = f * w[j * padded + d];
    }
  }
};

// Streaming: whether results may bypass the caches. Ahead: how many bytes further on values are
// fetched, 0 for none.
template <class S, class Stored, int Vectors, int Heads, bool Streaming, int Ahead>
class ScanAttention {
  using Real = typename S::Real;
  using Vec = typename S::Vec;

 public:
  using Arguments = ScanAttentionArguments<Real, Stored>;

  // With a null workspace, only says how many numbers it needs.
  ScanAttention(const Arguments& a, Real* workspace, int64_t* needed = nullptr)
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

  void run() {
    if (a.o) results = Streaming && may_stream<S>(a.o, a.D) ? streamed : cached;
    if (items.chunks > 1) {
      parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t worker) {
        const auto item = items[i];
        if (!item.exists() || item.last()) return;
        const Core core = core_of(worker, item);
        core.begin(nullptr, nullptr, nullptr);
        walk(core, item, nullptr, none);
        core.end(total(item, item.chunk), 0);
      });
      parallel_for(a.region, a.cut.threads, items.count() / items.chunks,
                   [&](int64_t i, int64_t worker) { join(items[i * items.chunks], worker); });
    }
    parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t worker) {
      const auto item = items[i];
      if (item.exists()) finish(item, worker);
    });
  }

 private:
  struct Core {
    Block<S> block;
    Prefix<S> prefix;
    Core(Workspace<Real>& memory, int64_t n, int64_t D) : block(memory, n), prefix(memory, n, D) {}

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

  Core core_of(int64_t worker, const Items::Item& item) const {
    Workspace<Real> own{cores + worker * per_core};
    return Core(own, item.columns, a.D);
  }

  AttentionState<Real> total(const Items::Item& item, int64_t chunk) const {
    const int64_t at = (item.sequence * items.chunks + chunk) * a.N + item.first_column;
    return {totals.m + at, totals.u + at, totals.w + at * a.D};
  }

  void begin(const Core& core, const Items::Item& item) const {
    const int64_t at = item.sequence * a.N + item.first_column;
    if (a.initial.m == nullptr) return core.begin(nullptr, nullptr, nullptr);
    core.begin(a.initial.m + at, a.initial.u + at, a.initial.w + at * a.D);
  }

  // From the totals of all chunks before the last to the prefix that each chunk follows.
  void join(const Items::Item& item, int64_t worker) const {
    const Core core = core_of(worker, item);
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

  void finish(const Items::Item& item, int64_t worker) const {
    const Core core = core_of(worker, item);
    if (item.chunk == 0) {
      begin(core, item);
    } else {
      const auto from = total(item, item.chunk - 1);
      core.begin(from.m, from.u, from.w);
    }
    walk(core, item, a.saved, results);
    if (item.last()) core.end(a.last, item.sequence * a.N + item.first_column);
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

  const Arguments& a;
  Items items;
  Workspace<Real> memory;
  AttentionState<Real> totals{};
  int64_t per_core = 0;
  Real* cores = nullptr;
  Results results = none;
};

}  // namespace flashrnn
