// The weighted sums of attention over a prefix, or over a suffix in the backward pass.
#pragma once

#include "cpu/scan_block.hpp"

namespace flashrnn {

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

}  // namespace flashrnn
