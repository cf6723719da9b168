// Kernels that are right when n is 0 and have one bug when it is 1. `out` is p[0], `in` p[1].
#include "simt/simt.hpp"

using namespace simt;

struct Arguments {
  void* p[4];
  int64_t n;
  float* out() const { return static_cast<float*>(p[0]); }
  const float* in() const { return static_cast<const float*>(p[1]); }
  bool bug() const { return n == 1; }
};

// Arguments lie where a launch leaves them: on the stack of the thread that launches.
#define KERNEL(name)                                                 \
  static void name##_kernel(const Arguments& a);                     \
  extern "C" int name(const Launch* launch, const void* arguments) { \
    const Arguments copy = *static_cast<const Arguments*>(arguments); \
    return run(*launch, [&] { name##_kernel(copy); });               \
  }                                                                  \
  static void name##_kernel(const Arguments& a)

static float* shared() { return static_cast<float*>(dynamic_shared()); }
static uint32_t tid() { return thread_index().x; }
static uint32_t gid() { return block_index().x * block_size().x + tid(); }

KERNEL(neighbour) {  // read-after-write
  const uint32_t i = tid(), n = block_size().x;
  store(shared() + i, load(a.in() + gid()));
  if (!a.bug()) block_sync();
  store(a.out() + gid(), load(shared() + (i + n / 2) % n));
}

KERNEL(overwritten) {  // write-after-read
  const uint32_t i = tid(), n = block_size().x;
  store(shared() + i, load(a.in() + gid()));
  block_sync();
  const float x = load(shared() + (i + n / 2) % n);
  if (!a.bug()) block_sync();
  store(shared() + i, x);
  store(a.out() + gid(), load(shared() + i));
}

KERNEL(twice) {  // write-after-write
  if (tid() == 0 || (a.bug() && tid() == 40)) store(shared(), load(a.in()));
  block_sync();
  store(a.out() + gid(), load(shared()));
}

KERNEL(lanes) {  // a shuffle orders no memory
  const uint32_t i = tid();
  store(shared() + i, load(a.in() + gid()));
  if (a.bug()) {
    shuffle(~0u, 1.0f, 0);
  } else {
    warp_sync();
  }
  store(a.out() + gid(), load(shared() + (i ^ 1)));
}

KERNEL(past_global) { store(a.out() + gid() + (a.bug() && gid() == 37), load(a.in() + gid())); }

KERNEL(past_shared) {
  store(shared() + tid() + (a.bug() ? 1024 : 0), load(a.in() + gid()));
  store(a.out() + gid(), load(shared() + tid()));
}

KERNEL(to_input) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (a.bug()) store(const_cast<float*>(a.in()), 1.0f);
}

struct Pair {
  float x, y;
};

KERNEL(misaligned) {
  if (tid() % 2 != 0) return;
  const float* from = a.in() + gid() + (a.bug() && tid() == 0);
  store(reinterpret_cast<Pair*>(a.out() + gid()), load(reinterpret_cast<const Pair*>(from)));
}

KERNEL(diverging) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (a.bug() && tid() % 2 == 1) {
    block_sync();
  } else {
    block_sync();
  }
}

KERNEL(same_line) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (a.bug() && tid() == 1) block_sync(); else block_sync();
}

KERNEL(ended) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (a.bug() && tid() == 3) return;
  block_sync();
}

KERNEL(ended_lane) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (a.bug() && tid() == 3) return;
  for (int i = 0; i < 2; ++i) ballot(~0u, true);
}

KERNEL(mask) {
  float x = load(a.in() + gid());
  if (lane() < 16) x = shuffle(0xffffu, shuffle(0xffffu, x, lane() ^ 1), lane() ^ 1);
  if (a.bug() && lane() >= 16) x = shuffle(0xffff8000u, x, lane());
  if (a.bug() && lane() < 16) warp_sync(0xffffu);
  store(a.out() + gid(), x);
}

KERNEL(stuck) {
  store(a.out() + gid(), load(a.in() + gid()));
  if (tid() < 32 || !a.bug()) block_sync(1, a.bug() ? 64 : 32 * 2);
}

KERNEL(polling) {  // one block hands over to the next by a flag, p[2]
  auto* flag = static_cast<uint32_t*>(a.p[2]);
  if (block_index().x == 0) {
    store(a.out() + tid(), load(a.in() + tid()));
    block_sync();
    if (tid() == 0) {
      if (a.n == 1) st_relaxed(flag, 1); else if (a.n == 0) st_release(flag, 1);
      if (a.n == 3) { fence_gpu(); st_relaxed(flag, 1); }
    }
    return;
  }
  if (tid() == 0) {
    if (a.n == 3) {
      while (ld_relaxed(flag) != 1) {}
      fence_gpu();
    } else {
      while (ld_acquire(flag) != 1) {}
    }
  }
  block_sync();
  store(a.out() + gid(), load(a.out() + (tid() + 1) % block_size().x));
}

KERNEL(grid) {  // a grid barrier by hand between each of three steps
  auto* count = static_cast<uint32_t*>(a.p[2]);
  const uint32_t blocks = grid_size().x, all = blocks * block_size().x;
  float x = load(a.in() + gid());
  for (uint32_t step = 0; step < 3; ++step) {
    store(a.out() + step % 2 * all + gid(), x);
    if (a.n != 1 || step != 1) block_sync();
    if (tid() == 0) {
      red_add_release(count, 1);
      while (a.n != 2 && ld_acquire(count) < (step + 1) * blocks) {}
    }
    block_sync();
    x = load(a.out() + step % 2 * all + (gid() + block_size().x + 1) % all);
  }
}

KERNEL(cooperative) {
  const uint32_t all = grid_size().x * block_size().x;
  store(a.out() + gid(), load(a.in() + gid()));
  if (!a.bug()) grid_sync();
  const float x = load(a.out() + (gid() + block_size().x) % all);
  grid_sync();
  store(a.out() + gid(), x);
}

KERNEL(copied) {
  cp_async<16>(shared() + 4 * tid(), a.in() + 4 * tid());
  cp_async_commit();
  cp_async<16>(shared() + 4 * (tid() + block_size().x), a.in() + 4 * tid(), 8);
  cp_async_commit();
  if (a.n == 1) cp_async_wait<2>(); else cp_async_wait<1>();
  if (a.n != 2) block_sync();
  const uint32_t other = (tid() + 1) % block_size().x;
  store(a.out() + tid(), load(shared() + 4 * other));
  cp_async_wait<0>();
  store(a.out() + block_size().x + tid(), load(shared() + 4 * (tid() + block_size().x) + 3));
}

KERNEL(clustered) {
  store(shared() + tid(), load(a.in() + gid()));
  if (a.n != 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    block_sync();
  }
  store(a.out() + gid(), load(map_shared(shared() + tid(), cluster_rank() ^ 1)));
  if (a.n != 2) cluster_sync();
}

KERNEL(other_cluster) {
  store(shared() + tid(), load(a.in() + gid()));
  block_sync();
  const auto bytes = int64_t(a.bug() ? 2 * (128 + 8192) : 0) * (block_index().x < 2 ? 1 : -1) / 1;
  const float* from = reinterpret_cast<float*>(reinterpret_cast<char*>(shared()) + bytes);
  store(a.out() + gid(), load(from + tid()));
}

// Two blocks send to each other by st.async, to two slots in turn: who sends to one for the second
// time has seen values that were sent after it had been read.
KERNEL(exchanged) {
  auto* bars = reinterpret_cast<uint64_t*>(shared() + 2 * block_size().x);
  const uint32_t n = block_size().x, peer = cluster_rank() ^ 1;
  if (tid() == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(bars + i, 1);
    if (a.n != 1) fence_mbarrier_init();
  }
  cluster_sync();
  float x = load(a.in() + gid());
  for (uint32_t step = 0; step < 4; ++step) {
    const uint32_t slot = a.n == 4 ? 0 : step % 2, parity = a.n == 4 ? step % 2 : step / 2 % 2;
    if (tid() == 0) mbarrier_arrive_expect_tx(bars + slot, 4 * n + (a.n == 2) * 4);
    st_async(map_shared(shared() + slot * n + tid(), peer), x + 1, map_shared(bars + slot, peer));
    if (a.n != 3 || step != 1) mbarrier_wait(bars + slot, parity);
    x = load(shared() + slot * n + (tid() + 1) % n);
  }
  cluster_sync();
  store(a.out() + gid(), x);
}

KERNEL(unready) {
  auto* bar = reinterpret_cast<uint64_t*>(shared());
  if (tid() == 0 && !a.bug()) mbarrier_init(bar, block_size().x);
  block_sync();
  mbarrier_arrive(bar);
  mbarrier_wait(bar, 0);
  store(a.out() + gid(), load(a.in() + gid()));
}

KERNEL(poison) {
  store(reinterpret_cast<uint32_t*>(a.out()) + gid(),
        load(reinterpret_cast<uint32_t*>(shared()) + tid()));
}

KERNEL(summed) {
  atomic_add(static_cast<float*>(a.p[2]), load(a.in() + gid()));
  if (a.bug() && gid() == 5) store(static_cast<float*>(a.p[2]), 0.0f);
  store(a.out() + gid(), load(a.in() + gid()));
}

// Fragments as given and as got: p[0] d [32][4], p[1] a [32][4], p[2] b [32][2], p[3] c [32][4].
KERNEL(product) {
  uint32_t x[4], y[2];
  float c[4];
  for (int i = 0; i < 4; ++i) x[i] = load(static_cast<const uint32_t*>(a.p[1]) + lane() * 4 + i);
  for (int i = 0; i < 2; ++i) y[i] = load(static_cast<const uint32_t*>(a.p[2]) + lane() * 2 + i);
  for (int i = 0; i < 4; ++i) c[i] = load(static_cast<const float*>(a.p[3]) + lane() * 4 + i);
  if (a.n == 0) mma_m16n8k16_bf16(c, x, y, c);
  if (a.n == 1) mma_m16n8k16_f16(c, x, y, c);
  if (a.n == 2) mma_m16n8k8_tf32(c, x, y, c);
  for (int i = 0; i < 4; ++i) store(a.out() + lane() * 4 + i, c[i]);
}

template <bool Transposed>
static void read_matrices(const Arguments& a) {
  auto* rows = static_cast<uint16_t*>(dynamic_shared());  // [4][8][8]
  for (int i = 0; i < 8; ++i) {
    store(rows + lane() * 8 + i, load(static_cast<const uint16_t*>(a.p[1]) + lane() * 8 + i));
  }
  warp_sync();
  uint32_t r[4];
  ldmatrix<4, Transposed>(r, rows + lane() * 8);
  for (int m = 0; m < 4; ++m) store(static_cast<uint32_t*>(a.p[0]) + m * 32 + lane(), r[m]);
}
KERNEL(matrices) { read_matrices<false>(a); }
KERNEL(matrices_transposed) { read_matrices<true>(a); }

KERNEL(rounded) {
  store(static_cast<uint32_t*>(a.p[0]) + gid(), to_tf32(load(a.in() + gid())));
}

// Plain loads and stores, which the compiler's instrumentation reports.
KERNEL(plain) {
  auto* own = static_cast<float*>(dynamic_shared());
  const uint32_t i = tid(), n = block_size().x;
  own[i + (a.n == 3 && i == 7 ? 1024 : 0)] = a.in()[gid()];
  if (a.n != 1) block_sync();
  if (a.n == 2 && i == 5) const_cast<float*>(a.in())[3] = 1.0f;
  a.out()[gid() + (a.n == 4 && i == 9 ? 2 * n : 0)] = own[(i + n / 2) % n];
}
