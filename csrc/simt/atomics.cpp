// Atomics at gpu scope, and what a release hands to an acquire.
#include "simt/machine.hpp"

namespace simt {

namespace {

// What a write publishes: all so far with a release, what came before the last fence without.
Known published(Thread& thread, bool release) { return release ? publish(thread) : thread.fenced; }

// A release's knowledge at once, a relaxed read's at the next fence.
void learn(Thread& thread, const Known& known, bool acquires) {
  if (acquires) {
    acquire(thread, known);
  } else {
    thread.to_acquire = merge(thread.to_acquire, known);
  }
}

}  // namespace

void fence_gpu(std::source_location) {
  if (!tracing()) return;
  Thread& thread = self();
  acquire(thread, thread.to_acquire);
  thread.to_acquire.reset();
  thread.fenced = publish(thread);
}

namespace bytes {

void load_atomic(void* to, const void* from, uint32_t size, bool acquires,
                 std::source_location where) {
  self().waits_for = "a poll";
  self().at = where;
  yield();
  check(from, size, Access::atomic_read, where);
  std::memcpy(to, from, size);
  if (!tracing()) return;
  const auto found = machine->released.find(from);
  if (found != machine->released.end()) learn(self(), found->second, acquires);
}

void store_atomic(void* to, const void* from, uint32_t size, bool release,
                  std::source_location where) {
  check(to, size, Access::atomic_write, where);
  std::memcpy(to, from, size);
  if (tracing()) machine->released[to] = published(self(), release);
}

void atomic(void* p, uint32_t size, void (*change)(void* value, const void* operand),
            const void* operand, void* old, bool acquires, bool release,
            std::source_location where) {
  check(p, size, Access::atomic_write, where);
  alignas(16) char value[16];
  std::memcpy(value, p, size);
  std::memcpy(old, p, size);
  change(value, operand);
  std::memcpy(p, value, size);
  if (!tracing()) return;
  Known& known = machine->released[p];
  learn(self(), known, acquires);
  // a change in place carries on what earlier releases of the address published
  known = merge(known, published(self(), release));
}

}  // namespace bytes

}  // namespace simt
