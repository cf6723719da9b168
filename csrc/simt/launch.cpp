// Runs a kernel: one fiber per thread, in the order that the launch asks for.
#include "simt/launch.hpp"

#include <algorithm>
#include <cstdio>

#include "simt/fiber.hpp"
#include "simt/machine.hpp"

#if defined(__x86_64__)
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, .-simt_switch
)");
#endif

namespace simt {

Machine* machine = nullptr;

namespace {

constexpr uint64_t shared_guard = 4096;
// A poll that nothing answers ends here, and a loop of atomics that only answer each other.
constexpr int passes_without_progress = 200;
constexpr uint64_t most_switches = 1u << 29;
const std::function<void()>* kernel_body = nullptr;

uint32_t volume(const Dim3& d) { return d.x * d.y * d.z; }

Dim3 unravel(uint32_t i, const Dim3& d) { return {i % d.x, i / d.x % d.y, i / (d.x * d.y)}; }

void leave_for_good() {
  Thread& thread = self();
  Block& block = *thread.block;
  thread.done = true;
  ++machine->progress;
  thread.warp->alive &= ~(1u << thread.lane);
  ++block.exited;
  ++block.cluster->exited;
  ++machine->exited;
  for (Barrier* barrier : {&block.barriers[0], &block.cluster->barrier, &machine->grid_barrier}) {
    if (!barrier->arrived.empty()) {
      fail("exited", name_of(thread) + " has ended while others wait at a barrier, " +
                         barrier->first.text());
    }
  }
}

void entry() {
  try {
    (*kernel_body)();
    leave_for_good();
  } catch (const Fault& fault) {
    machine->issues.push_back(fault.kind + ": " + fault.text);
    machine->failed = true;
  }
  self().done = true;
  for (;;) yield();
}

bool can_run(const Thread& t) { return !t.done && (t.phase == nullptr || *t.phase != t.seen); }

void report_deadlock() {
  std::string text;
  uint32_t stuck = 0;
  std::set<std::string> sites;
  for (const Thread& thread : machine->threads) {
    if (thread.done) continue;
    ++stuck;
    const std::string site = std::string(thread.waits_for) + " at " + thread.at.text();
    if (sites.size() < 4 && sites.insert(site).second) text += "; " + name_of(thread) + " in " + site;
  }
  machine->issues.push_back("deadlock: " + std::to_string(stuck) + " threads wait for ever" + text);
}

void schedule() {
  Machine& m = *machine;
  std::vector<Thread*> order;
  for (Thread& thread : m.threads) order.push_back(&thread);
  if (m.launch.order == reverse) std::reverse(order.begin(), order.end());
  int idle = 0;
  uint64_t switches = 0;
  while (m.exited < m.threads.size() && !m.failed) {
    uint64_t late = 0;  // warps that sit this pass out, so that others run ahead of them
    if (m.launch.order == random) {
      std::shuffle(order.begin(), order.end(), m.random);
      late = m.random() & m.random();
    }
    const uint64_t before = m.progress;
    bool ran = false, skipped = false;
    for (Thread* thread : order) {
      if (m.failed) break;
      if (!can_run(*thread)) continue;
      if (late >> (thread->id / 32 % 64) & 1) {
        skipped = true;
        continue;
      }
      m.current = thread;
      ++switches;
      thread->fiber->resume();
      ran = true;
    }
    idle = m.progress == before ? idle + 1 : 0;
    if ((!ran && !skipped) || idle > passes_without_progress || switches > most_switches) {
      if (!m.failed && m.exited < m.threads.size()) report_deadlock();
      return;
    }
  }
}

void build(Machine& m, char* shared, uint64_t stride) {
  const uint32_t threads = volume(m.block), per_cluster = volume(m.cluster);
  m.clusters.resize(m.blocks.size() / per_cluster);
  for (uint32_t b = 0; b < m.blocks.size(); ++b) {
    Block& block = m.blocks[b];
    block.index = unravel(b, m.grid);
    block.id = b;
    const Dim3 within{block.index.x % m.cluster.x, block.index.y % m.cluster.y,
                      block.index.z % m.cluster.z};
    block.rank = (within.z * m.cluster.y + within.y) * m.cluster.x + within.x;
    const Dim3 outer{m.grid.x / m.cluster.x, m.grid.y / m.cluster.y, m.grid.z / m.cluster.z};
    const uint32_t c = (block.index.z / m.cluster.z * outer.y + block.index.y / m.cluster.y) *
                           outer.x + block.index.x / m.cluster.x;
    block.cluster = &m.clusters[c];
    block.cluster->threads += threads;
    block.shared = shared + b * stride + shared_guard;
    std::memset(block.shared, 0xff, m.launch.shared_bytes);
    block.warps.resize((threads + 31) / 32);
    m.memories.push_back({block.shared, m.launch.shared_bytes, shared_guard, "shared memory",
                          read_write, &block, {}});
    for (uint32_t t = 0; t < threads; ++t) {
      Thread& thread = m.threads[b * threads + t];
      thread.index = unravel(t, m.block);
      thread.block = &block;
      thread.warp = &block.warps[t / 32];
      thread.lane = t % 32;
      thread.id = b * threads + t;
      thread.warp->lanes[thread.lane] = &thread;
      thread.warp->alive |= 1u << thread.lane;
    }
  }
}

int write_report(const Launch& launch, const std::vector<std::string>& issues) {
  std::string text;
  for (const std::string& issue : issues) text += issue + "\n";
  if (launch.report != nullptr && launch.report_bytes > 0) {
    std::snprintf(launch.report, launch.report_bytes, "%s", text.c_str());
  }
  return int(issues.size());
}

std::string refusal(const Machine& m) {
  const uint32_t threads = volume(m.block);
  if (threads == 0 || threads > 1024 || threads % 32 != 0) {
    return "launch: a block of " + std::to_string(threads) +
           " threads; blocks have whole warps, 32 to 1024 threads";
  }
  if (volume(m.cluster) == 0 || volume(m.grid) == 0 || m.grid.x % m.cluster.x != 0 ||
      m.grid.y % m.cluster.y != 0 || m.grid.z % m.cluster.z != 0) {
    return "launch: a grid of " + std::to_string(volume(m.grid)) + " blocks is not made of clusters of " +
           std::to_string(volume(m.cluster));
  }
  return "";
}

}  // namespace

void yield() { self().fiber->leave(); }

int run(const Launch& launch, const std::function<void()>& kernel) {
  const auto dim = [](const uint32_t(&d)[3]) { return Dim3{d[0], d[1], d[2]}; };
  Machine m(launch, dim(launch.grid), dim(launch.block), dim(launch.cluster));
  const std::string refused = refusal(m);
  if (!refused.empty()) return write_report(launch, {refused});
  const uint32_t blocks = volume(m.grid), count = blocks * volume(m.block);
  const uint64_t stride = (launch.shared_bytes + 2 * shared_guard + 127) / 128 * 128;
  Pages shared(blocks * stride), stacks(count * stack_bytes);
  if (shared.data() == nullptr || stacks.data() == nullptr) {
    return write_report(launch, {"launch: no memory for " + std::to_string(count) + " threads"});
  }
  m.random.seed(launch.seed);
  m.blocks.resize(blocks);
  m.threads.resize(count);
  build(m, shared.data(), stride);
  for (uint64_t i = 0; i < launch.region_count; ++i) {
    const Region& r = launch.regions[i];
    if (r.kind == output) std::memset(r.data, 0xff, r.bytes);
    m.memories.push_back({static_cast<char*>(r.data), r.bytes, r.guard, '"' + std::string(r.name) + '"',
                          uint32_t(r.kind), nullptr, {}});
  }
  if (launch.races != 0) {
    const Known nothing = std::make_shared<Clocks>(3 * count, 0);
    for (Thread& thread : m.threads) thread.known = nothing;
    for (Memory& memory : m.memories) {
      if (memory.kind != read_only) memory.cells.resize((memory.bytes + 1) / 2);
    }
  }
  m.stacks = stacks.data();
  m.stacks_end = stacks.data() + count * stack_bytes;
  std::vector<Fiber> fibers(count);
  kernel_body = &kernel;
  machine = &m;
  for (uint32_t i = 0; i < count; ++i) {
    fibers[i].prepare(stacks.data() + i * stack_bytes, entry);
    m.threads[i].fiber = &fibers[i];
  }
  schedule();
  machine = nullptr;
  return write_report(launch, m.issues);
}

}  // namespace simt
