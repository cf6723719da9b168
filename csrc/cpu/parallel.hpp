// Work items over threads. The OpenMP runtime is the one that the process already has: its
// GOMP_parallel comes in as a pointer, so a kernel links none of its own. Which thread takes an
// item never changes what the item computes.
#pragma once

#include <atomic>
#include <cstdint>

namespace flashrnn {

using ParallelRegion = void (*)(void (*)(void*), void*, unsigned, unsigned);

// item(index, worker) for index in [0, items); worker < threads tells apart who runs at once.
template <class Item>
void parallel_for(ParallelRegion region, int64_t threads, int64_t items, Item&& item) {
  if (items < threads) threads = items;
  if (region == nullptr || threads <= 1) {
    for (int64_t i = 0; i < items; ++i) item(i, int64_t{0});
    return;
  }
  struct Shared {
    Item& item;
    int64_t items;
    std::atomic<int64_t> next{0}, workers{0};
  } shared{item, items};
  region(
      [](void* data) {
        auto& s = *static_cast<Shared*>(data);
        const int64_t worker = s.workers.fetch_add(1);
        for (int64_t i; (i = s.next.fetch_add(1)) < s.items;) s.item(i, worker);
      },
      &shared, static_cast<unsigned>(threads), 0);
}

}  // namespace flashrnn
