// Attention over every prefix as a scan: backward.
//
// With S_i = d_o_i / u_i + e^(m_i - m_{i+1}) S_{i+1} (a vector per head) and
// sigma_i = <d_o_i, o_i> / u_i + e^(m_i - m_{i+1}) sigma_{i+1}:
//   d_v_i = e^(s_i - m_i) S_i,   d_s_i = e^(s_i - m_i) (<v_i, S_i> - sigma_i).
// Every factor is at most 1 but 1 / u_i, so nothing overflows. The scalars of a block are computed
// again from m and u before it, to the same bits as in the forward pass. Sums are kept as there: 64
// rows locally, the rest with what rounding loses. Gradients of the last state are S and -sigma
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

template <class S, class Stored, int Vectors, int Heads>
class ScanAttentionBackward {
  using Real = typename S::Real;
  using Vec = typename S::Vec;
  enum Mode { totals_only, with_outputs, without_outputs };

 public:
  using Arguments = ScanAttentionBackwardArguments<Real, Stored>;

  ScanAttentionBackward(const Arguments& a, Real* workspace, int64_t* needed = nullptr)
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
    streaming = a.cut.streaming && may_stream<S>(a.d_v, a.D);
    if (items.chunks > 1) {
      parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t worker) {
        const auto item = items[i];
        if (!item.exists() || item.chunk == 0) return;
        const Core core = core_of(worker, item);
        core.suffix.begin(nullptr, nullptr, nullptr);
        relative_to_end(core, item);
        if (a.d_o) walk<totals_only>(core, item);
        else relative_to_begin(core, item);
        const auto to = total(item, item.chunk);
        core.suffix.end(to.m, to.u, to.w);
      });
      parallel_for(a.region, a.cut.threads, items.count() / items.chunks,
                   [&](int64_t i, int64_t worker) { join(items[i * items.chunks], worker); });
    }
    parallel_for(a.region, a.cut.threads, items.count(), [&](int64_t i, int64_t worker) {
      const auto item = items[i];
      if (item.exists()) finish(item, worker);
    });
    if (a.d_last.m != nullptr)  // once all gradients are written
      for (int64_t i = 0; i < items.count(); i += items.chunks) through_maximum(items[i]);
  }

 private:
  // The sums over what follows: m is the maximum they are relative to, u stands for sigma and w
  // for S.
  struct Core {
    Block<S> block;
    Prefix<S> suffix;
    Real* dots;   // [block_rows][n]: <v_i, S_i> - sigma_i, but for sigma behind the block
    Real* sigma;  // [n][padded]: sigma's sum within the block, a vector for each panel
    Core(Workspace<Real>& memory, int64_t n, int64_t D) : block(memory, n), suffix(memory, n, D) {
      dots = memory.take(block_rows * n + S::lanes);
      sigma = memory.take(n * suffix.padded);
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

  int64_t state_at(const Items::Item& item) const {
    return item.sequence * a.N + item.first_column;
  }

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

  // The maximum that an empty suffix behind this chunk is relative to: that of its last row.
  void relative_to_end(const Core& core, const Items::Item& item) const {
    const int64_t start = (item.end - 1) / block_rows * block_rows, n = item.columns;
    scan(core, item, start, item.end - start);
    std::memcpy(core.suffix.m, core.block.m + (item.end - start - 1) * n, n * sizeof(Real));
  }

  void relative_to_begin(const Core& core, const Items::Item& item) const {
    scan(core, item, item.begin, 1);
    std::memcpy(core.suffix.m, core.block.m, item.columns * sizeof(Real));
  }

  void scan(const Core& core, const Items::Item& item, int64_t row, int64_t rows) const {
    const auto scores = a.sequences.rows(a.scores, item.sequence).shifted(item.first_column);
    const Real* before = saved_at(item, row);
    core.block.scan(scores, row, rows, before, before + a.N);
  }

  // From each chunk's own sums to the suffix that follows the chunk before it.
  void join(const Items::Item& item, int64_t worker) const {
    const Core core = core_of(worker, item);
    const Prefix<S>& suffix = core.suffix;
    begin(core, item);
    const int64_t n = item.columns;
    for (int64_t j = 0; j < n; ++j) suffix.other[j] = 1;
    for (int64_t c = item.chunks - 1; c > 0; --c) {
      const auto t = total(item, c);
      for (int64_t j = 0; j < n; j += S::lanes) {
        const Vec maximum = S::load(t.m + j, n - j);
        S::store(core.block.m + j, maximum);
        S::store(suffix.factor + j, ratio<S>(maximum, S::load(suffix.m + j)));
        S::store(core.block.p + j, S::load(t.u + j, n - j));
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t d = 0; d < suffix.padded; ++d)
          suffix.local[j * suffix.padded + d] = d < a.D ? t.w[j * a.D + d] : 0;
      suffix.join(core.block.m, core.block.p, suffix.local);
      suffix.end(t.m, t.u, t.w);
    }
  }

  void finish(const Items::Item& item, int64_t worker) const {
    const Core core = core_of(worker, item);
    if (item.last()) {
      begin(core, item);
    } else {
      const auto from = total(item, item.chunk + 1);
      core.suffix.begin(from.m, from.u, from.w);
    }
    a.d_o ? walk<with_outputs>(core, item) : walk<without_outputs>(core, item);
    if (streaming) fence();
    if (item.chunk == 0 && a.d_initial.m != nullptr) initial(core, item);
  }

  template <Mode mode>
  __attribute__((noinline)) void walk(const Core& core, const Items::Item& item) const {
    const Block<S>& block = core.block;
    const Prefix<S>& suffix = core.suffix;
    const int64_t n = item.columns;
    for (int64_t j = 0; j < n; ++j) suffix.other[j] = 1;
    const int64_t blocks = parts(item.end - item.begin, block_rows);
    for (int64_t b = blocks - 1; b >= 0; --b) {
      const int64_t i = item.begin + b * block_rows;
      const int64_t rows = item.end - i < block_rows ? item.end - i : block_rows;
      scan(core, item, i, rows);
      for (int64_t r = 0; r < rows; ++r)  // the factor of what follows the block
        for (int64_t j = 0; j < n; j += S::lanes)
          S::store(block.before + r * n + j,
                   ratio<S>(S::load(block.m + r * n + j), S::load(suffix.m + j)), n - j);
      std::memset(core.dots, 0, rows * n * sizeof(Real));
      std::memset(core.sigma, 0, n * suffix.padded * sizeof(Real));
      std::memset(suffix.local, 0, n * suffix.padded * sizeof(Real));
      for (int64_t end = rows; end > 0; end -= a.cut.t_per_tile) {
        const int64_t t = end < a.cut.t_per_tile ? 0 : end - a.cut.t_per_tile;
        head_panels<S, Vectors, Heads>(n, a.D, [&](auto panel, int64_t j)
                                                   __attribute__((always_inline)) {
          this->tile<mode>(panel, core, item, i, t, end, j);
        });
      }
      scalars<mode>(core, item, i, rows);
      std::memcpy(suffix.factor, block.before, n * sizeof(Real));
      suffix.join(block.m, block.local, suffix.local);
    }
  }

  // Rows [t, end) of the block that begins at row i, last row first, a panel of head j and its
  // neighbours. sigma is summed lane by lane, so that a row needs one sum over channels only.
  template <Mode mode, class P>
  FLASHRNN_INLINE void tile(P panel, const Core& core, const Items::Item& item, int64_t i,
                            int64_t t, int64_t end, int64_t j) const {
    constexpr bool outputs = mode != without_outputs, values = mode != totals_only;
    const Block<S>& block = core.block;
    const auto& s = a.sequences;
    const auto v = s.rows(a.v, item.sequence), o = s.rows(a.o, item.sequence);
    const auto d_o = s.rows(a.d_o, item.sequence);
    const auto d_v = s.rows(a.d_v, item.sequence);
    const int64_t at = j * core.suffix.padded + panel.at, ahead = end - t;
    const int64_t column = (item.first_column + j) * a.D + panel.at;
    Vec local[P::all], after[P::all], sigma[P::heads], terms[P::heads][4];
    unroll<P::all>([&](auto k) __attribute__((always_inline)) {
      local[k] = S::load(core.suffix.local + at + k * S::lanes);
      after[k] = S::load(core.suffix.w + at + k * S::lanes);
    });
    unroll<P::heads>([&](auto h) __attribute__((always_inline)) {
      sigma[h] = S::load(core.sigma + at + h * P::vectors * S::lanes);
    });
    for (int64_t r = end - 1; r >= t; --r) {
      const int64_t row = i + r, slot = (end - 1 - r) % 4;
      unroll<P::heads>([&](auto h) __attribute__((always_inline)) {
        const int64_t scalar = r * block.n + j + h;
        const Vec scale = S::broadcast(block.scale[scalar + block.n]);
        const Vec inverse = S::broadcast(block.inverse[scalar]);
        const Vec follows = S::broadcast(block.before[scalar]), p = S::broadcast(block.p[scalar]);
        Vec sum_o{}, sum_v{};
        unroll<P::vectors>([&](auto vector) __attribute__((always_inline)) {
          constexpr int k = h * P::vectors + vector;
          const int64_t c = column + k * S::lanes;
          if constexpr (outputs) {
            const Vec d = panel.load(d_o[row] + c);
            prefetch(d_o[row - ahead] + c);
            prefetch(o[row - ahead] + c);
            sum_o = S::fma(d, panel.load(o[row] + c), sum_o);
            local[k] = S::fma(inverse, d, scale * local[k]);
          }
          if constexpr (values) {
            const Vec sum = S::fma(follows, after[k], local[k]);
            prefetch(v[row - ahead] + c);
            sum_v = S::fma(panel.load(v[row] + c), sum, sum_v);
            panel.store(d_v[row] + c, p * sum, streaming);
          }
        });
        if constexpr (outputs) sigma[h] = S::fma(inverse, sum_o, scale * sigma[h]);
        if constexpr (values) {
          terms[h][slot] = sum_v - sigma[h];
          if (slot == 3 || r == t) add_dots(terms[h], core.dots + scalar, slot, block.n);
        }
      });
    }
    unroll<P::heads>([&](auto h) __attribute__((always_inline)) {
      S::store(core.sigma + at + h * P::vectors * S::lanes, sigma[h]);
    });
    unroll<P::all>([&](auto k) __attribute__((always_inline)) {
      S::store(core.suffix.local + at + k * S::lanes, local[k]);
    });
  }

  // Adds the sum of terms[k] to the row at `to`, of terms[k - 1] to the next one, and so on.
  static FLASHRNN_INLINE void add_dots(const Vec* terms, Real* to, int64_t k, int64_t n) {
    if (k == 3) {
      Real sums[4];
      sums_of_four<S>(terms, sums);
      for (int64_t x = 0; x < 4; ++x) to[x * n] += sums[3 - x];
    } else {
      for (int64_t x = 0; x <= k; ++x) to[x * n] += sum_of<Real, sizeof(Vec)>(terms[k - x]);
    }
  }

  // The gradients of the scores; leaves the block's own sigma in block.local.
  template <Mode mode>
  void scalars(const Core& core, const Items::Item& item, int64_t i, int64_t rows) const {
    const Block<S>& block = core.block;
    const int64_t n = item.columns, padded = core.suffix.padded;
    for (int64_t j = 0; j < n; ++j) {
      Vec sum{};
      for (int64_t k = j * padded; k < (j + 1) * padded; k += S::lanes)
        sum += S::load(core.sigma + k);
      block.local[j] = sum_of<Real, sizeof(Vec)>(sum);
    }
    if constexpr (mode == totals_only) return;
    const auto to = a.sequences.rows(a.d_scores, item.sequence).shifted(item.first_column);
    for (int64_t j = 0; j < n; j += S::lanes) {
      const Vec after = S::load(core.suffix.u + j);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t k = r * n + j;
        const Vec d = S::fma(S::load(block.before + k), -after, S::load(core.dots + k));
        Memory<S, Stored>::store(to[i + r] + j, S::load(block.p + k) * d, n - j);
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

  const Arguments& a;
  Items items;
  Workspace<Real> memory;
  AttentionState<Real> totals{};
  int64_t per_core = 0;
  Real* cores = nullptr;
  bool streaming = false;
};

}  // namespace flashrnn
