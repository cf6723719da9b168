// Copies that land later: cp.async at its wait, st.async when a waiter's mbarrier needs it.
#include <algorithm>
#include <utility>

#include "simt/machine.hpp"

namespace simt {

namespace {

void land(Copy& copy) {
  set_pending(copy.to, copy.bytes, -1, copy.where);
  if (copy.valid > 0) check(copy.from, copy.valid, Access::read, copy.where);
  check(copy.to, copy.bytes, Access::write, copy.where);
  std::memset(copy.to, 0, copy.bytes);
  std::memcpy(copy.to, copy.from, copy.valid);
}

}  // namespace

void cp_async_commit() {
  Thread& thread = self();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

namespace bytes {

void cp_async(void* shared, const void* global, uint32_t size, uint32_t valid,
              std::source_location where) {
  if (valid > size) {
    fail("collective", name_of(self()) + " copies " + std::to_string(valid) + " of " +
                           std::to_string(size) + " bytes at " + Place(where).text());
  }
  if (memory_of(shared, size, "writes", where).owner != self().block) {
    fail("out-of-bounds", name_of(self()) + " copies to what is not its block's shared memory at " +
                              Place(where).text());
  }
  if (reinterpret_cast<std::uintptr_t>(shared) % size != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % size != 0) {
    fail("misaligned", name_of(self()) + " copies " + std::to_string(size) + " bytes at " +
                           Place(where).text() + " that are not aligned to their size");
  }
  if (valid > 0) check(global, valid, Access::read, where);
  check(shared, size, Access::write, where);
  std::memset(shared, 0xff, size);
  set_pending(shared, size, 1, where);
  self().open.push_back({static_cast<char*>(shared), static_cast<const char*>(global), size, valid,
                         where});
}

void cp_async_wait(uint32_t pending, std::source_location) {
  auto& groups = self().groups;
  while (groups.size() > pending) {
    for (Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace bytes

namespace {

Mbarrier& barrier_at(uint64_t* bar, const char* what, Place at) {
  const auto found = machine->mbarriers.find(bar);
  const Memory& memory = memory_of(bar, 8, "uses", at);
  if (found == machine->mbarriers.end()) {
    fail("mbarrier", name_of(self()) + " is in " + what + ", " + at.text() +
                         ", at a barrier that nothing has initialised");
  }
  Mbarrier& barrier = found->second;
  if (memory.owner != self().block && !barrier.fenced) {
    fail("mbarrier", name_of(self()) + " is in " + what + ", " + at.text() + ", at a barrier of a " +
                         "peer block that no fence_mbarrier_init has followed");
  }
  check(bar, 8, Access::atomic_read, at);  // its state is ours to keep; init is a plain write
  return barrier;
}

void complete(Mbarrier& barrier) {
  if (barrier.waiting > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  ++machine->progress;
  barrier.waiting = barrier.count;
  barrier.done = std::move(barrier.open);
  barrier.open.reset();
}

void deliver(Mbarrier& barrier) {
  std::shared_ptr<Clocks> known;
  const Clocks* merged = nullptr;
  if (tracing()) {
    known = barrier.open ? std::make_shared<Clocks>(*barrier.open)
                         : std::make_shared<Clocks>(3 * machine->threads.size(), 0);
  }
  for (AsyncStore& store : std::exchange(barrier.stores, {})) {
    set_pending(store.to, store.bytes, -1, store.where);
    std::memcpy(store.to, store.value, store.bytes);
    ++machine->progress;
    barrier.bytes -= store.bytes;
    if (!tracing()) continue;
    record_write(store.to, store.bytes, {store.agent, store.clock, store.where, false});
    (*known)[store.agent] = std::max((*known)[store.agent], store.clock);
    if (store.carried.get() == merged) continue;
    merged = store.carried.get();
    for (std::size_t i = 0; i < known->size(); ++i) (*known)[i] = std::max((*known)[i], (*merged)[i]);
  }
  if (tracing()) barrier.open = std::move(known);
  complete(barrier);
}

// What whoever sees an asynchronous store learns, the store apart: its thread's earlier reads are
// over, since an asynchronous store is issued after them. Of its writes it learns nothing.
Known carried_by(Thread& thread) {
  if (!thread.carried || thread.carried_from != thread.known) {
    const std::size_t count = machine->threads.size();
    auto reads = std::make_shared<Clocks>(3 * count, 0);
    for (std::size_t i = 0; i < count; ++i) {
      (*reads)[2 * count + i] = std::max((*thread.known)[i], (*thread.known)[2 * count + i]);
    }
    (*reads)[2 * count + thread.id] = thread.now++;
    thread.carried = std::move(reads);
    thread.carried_from = thread.known;
  }
  return thread.carried;
}

void arrive_at(Mbarrier& barrier, Place at) {
  if (barrier.waiting == 0) {
    fail("mbarrier", name_of(self()) + " arrives, " + at.text() + ", at a barrier whose " +
                         std::to_string(barrier.count) + " arrivals have all come");
  }
  --barrier.waiting;
  ++machine->progress;
  if (tracing()) barrier.open = merge(barrier.open, publish(self()));
  complete(barrier);
}

}  // namespace

void mbarrier_init(uint64_t* bar, uint32_t count, std::source_location where) {
  check(bar, 8, Access::write, where);
  if (machine->mbarriers.count(bar) != 0 || count == 0) {
    fail("mbarrier", name_of(self()) + " initialises a barrier for " + std::to_string(count) +
                         " arrivals, " + Place(where).text() +
                         "; it must be new, and one arrival the least");
  }
  Mbarrier& barrier = machine->mbarriers[bar];
  barrier.count = barrier.waiting = count;
  barrier.creator = &self();
}

void fence_mbarrier_init() {
  for (auto& [at, barrier] : machine->mbarriers) {
    if (barrier.creator == &self()) barrier.fenced = true;
  }
}

void mbarrier_arrive(uint64_t* bar, std::source_location where) {
  arrive_at(barrier_at(bar, "mbarrier_arrive", where), where);
}

void mbarrier_expect_tx(uint64_t* bar, uint32_t size, std::source_location where) {
  barrier_at(bar, "mbarrier_expect_tx", where).bytes += size;
}

void mbarrier_arrive_expect_tx(uint64_t* bar, uint32_t size, std::source_location where) {
  Mbarrier& barrier = barrier_at(bar, "mbarrier_arrive_expect_tx", where);
  barrier.bytes += size;
  arrive_at(barrier, where);
}

bool mbarrier_try_wait(uint64_t* bar, uint32_t parity, std::source_location where) {
  self().waits_for = "mbarrier_try_wait";
  self().at = where;
  yield();
  Mbarrier& barrier = barrier_at(bar, "mbarrier_try_wait", where);
  if (barrier.phase % 2 == parity % 2) {
    int64_t due = barrier.bytes;
    for (const AsyncStore& store : barrier.stores) due -= store.bytes;
    if (barrier.waiting == 0 && due == 0) deliver(barrier);
  }
  if (barrier.phase % 2 == parity % 2) return false;
  if (tracing()) acquire(self(), barrier.done);
  return true;
}

void mbarrier_wait(uint64_t* bar, uint32_t parity, std::source_location where) {
  while (!mbarrier_try_wait(bar, parity, where)) {
  }
}

namespace bytes {

void st_async(void* peer, const void* value, uint32_t size, uint64_t* bar,
              std::source_location where) {
  const Block* owner = memory_of(peer, size, "writes", where).owner;
  Mbarrier& barrier = barrier_at(bar, "st_async", where);
  if (owner == nullptr || memory_of(bar, 8, "uses", where).owner != owner) {
    fail("mbarrier", name_of(self()) + " stores to one block and signals another, " +
                         Place(where).text() + "; st_async needs both in the same shared memory");
  }
  check(peer, size, Access::write, where);
  std::memset(peer, 0xff, size);
  set_pending(peer, size, 1, where);
  const uint32_t agent = uint32_t(machine->threads.size()) + self().id;
  AsyncStore store{static_cast<char*>(peer), {}, size, agent, ++self().stores,
                   tracing() ? carried_by(self()) : nullptr, where};
  std::memcpy(store.value, value, size);
  barrier.stores.push_back(store);
}

}  // namespace bytes

}  // namespace simt
