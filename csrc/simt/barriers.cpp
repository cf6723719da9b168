// Barriers, and what threads know of each other: vector clocks, shared by all that met.
#include <algorithm>

#include "simt/machine.hpp"

namespace simt {

Known merge(const Known& a, const Known& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto both = std::make_shared<Clocks>(*a);
  for (std::size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
  return both;
}

Known publish(Thread& thread) {
  auto mine = std::make_shared<Clocks>(*thread.known);
  (*mine)[thread.id] = thread.now++;
  return mine;
}

void acquire(Thread& thread, const Known& from) {
  if (!from || thread.last_acquired == from) return;
  thread.known = merge(thread.known, from);
  thread.last_acquired = from;
}

void meet(const std::vector<Thread*>& threads) {
  if (!tracing()) return;
  auto all = std::make_shared<Clocks>(*threads.front()->known);
  std::set<const Clocks*> merged{threads.front()->known.get()};
  for (Thread* thread : threads) {
    if (!merged.insert(thread->known.get()).second) continue;
    for (std::size_t i = 0; i < all->size(); ++i) (*all)[i] = std::max((*all)[i], (*thread->known)[i]);
  }
  for (Thread* thread : threads) (*all)[thread->id] = std::max((*all)[thread->id], thread->now++);
  for (Thread* thread : threads) thread->known = all;
}

void wait_while(const uint64_t& phase, uint64_t seen, const char* what, Place at) {
  Thread& thread = self();
  thread.seen = seen;
  thread.waits_for = what;
  thread.at = at;
  thread.phase = &phase;
  while (phase == seen) yield();
  thread.phase = nullptr;
}

namespace {

// Completes the phase if the thread is the last one; the phase that it arrived in. `split`: the
// threads learn of each other when they wait, not when the last one arrives.
uint64_t join(Barrier& barrier, uint32_t expected, uint32_t exited, const char* what, Place at,
              bool split) {
  Thread& thread = self();
  if (exited > 0) {
    fail("exited", name_of(thread) + " arrives at " + what + ", " + at.text() + ", but " +
                       std::to_string(exited) + " of its threads have ended");
  }
  if (barrier.arrived.empty()) {
    barrier.first = at;
  } else if (!(barrier.first == at)) {
    fail("divergence", name_of(thread) + " arrives at " + what + ", " + at.text() + ", and " +
                           name_of(*barrier.arrived.front()) + " at " + barrier.first.text());
  }
  const uint64_t phase = barrier.phase;
  barrier.arrived.push_back(&thread);
  if (split && tracing()) barrier.gathered = merge(barrier.gathered, publish(thread));
  if (barrier.arrived.size() == expected) {
    if (split) {
      barrier.done = std::move(barrier.gathered);
      barrier.gathered.reset();
    } else {
      meet(barrier.arrived);
    }
    barrier.arrived.clear();
    ++barrier.phase;
    ++machine->progress;
  }
  return phase;
}

}  // namespace

void arrive(Barrier& barrier, uint32_t expected, uint32_t exited, const char* what, Place at) {
  const uint64_t phase = join(barrier, expected, exited, what, at, false);
  if (barrier.phase == phase) wait_while(barrier.phase, phase, what, at);
}

void block_sync(std::source_location where) {
  Block& block = *self().block;
  const uint32_t threads = uint32_t(machine->threads.size() / machine->blocks.size());
  arrive(block.barriers[0], threads, block.exited, "block_sync", where);
}

void block_sync(uint32_t id, uint32_t threads, std::source_location where) {
  if (id >= 16 || threads == 0 || threads % 32 != 0) {
    fail("collective", name_of(self()) + " in block_sync, " + Place(where).text() + ": barrier " +
                           std::to_string(id) + " for " + std::to_string(threads) +
                           " threads; barriers are 0 to 15, threads a multiple of 32");
  }
  arrive(self().block->barriers[id], threads, 0, "block_sync", where);
}

void grid_sync(std::source_location where) {
  arrive(machine->grid_barrier, uint32_t(machine->threads.size()), machine->exited, "grid_sync",
         where);
}

void cluster_arrive(std::source_location where) {
  Thread& thread = self();
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_arrived) {
    fail("collective", name_of(thread) + " arrives twice at the cluster barrier, " +
                           Place(where).text());
  }
  thread.cluster_arrived = true;
  thread.cluster_phase =
      join(cluster.barrier, cluster.threads, cluster.exited, "cluster_arrive", where, true);
}

void cluster_wait(std::source_location where) {
  Thread& thread = self();
  if (!thread.cluster_arrived) {
    fail("collective", name_of(thread) + " waits for the cluster barrier without arriving, " +
                           Place(where).text());
  }
  thread.cluster_arrived = false;
  const Barrier& barrier = thread.block->cluster->barrier;
  if (barrier.phase == thread.cluster_phase) {
    wait_while(barrier.phase, thread.cluster_phase, "cluster_wait", where);
  }
  if (tracing()) acquire(thread, barrier.done);
}

void cluster_sync(std::source_location where) {
  cluster_arrive(where);
  cluster_wait(where);
}

}  // namespace simt
