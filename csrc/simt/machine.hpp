// The state of a launch: threads, warps, blocks, clusters, and what they know of each other.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <source_location>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt/launch.hpp"
#include "simt/simt.hpp"

namespace simt {

// Where in the source: a call's location, or the address of an instrumented access.
struct Place {
  std::uintptr_t bits = 0;
  bool is_address = false;
  Place() = default;
  Place(std::source_location where) { std::memcpy(&bits, &where, sizeof bits); }
  static Place address(const void* at);
  std::string text() const;
  bool operator==(const Place& other) const {
    return bits == other.bits || text() == other.text();
  }
};
static_assert(sizeof(std::source_location) == sizeof(std::uintptr_t));

// Ends the launch; caught at the foot of the fiber.
struct Fault {
  std::string kind, text;
};

// What is known of every agent: its clock up to which its accesses come before ours. Agents are the
// threads, behind them one per thread for its asynchronous stores, and last the threads again, of
// which only reads are known. Shared by threads that met.
using Clocks = std::vector<uint32_t>;
using Known = std::shared_ptr<const Clocks>;

struct Thread;

struct Barrier {
  uint64_t phase = 0;
  std::vector<Thread*> arrived;
  Place first;
  Known gathered, done;  // of a barrier whose threads arrive and wait apart
};

struct Rendezvous {
  uint32_t mask, arrived;
  int operation;
  Place first;
};

struct Warp {
  Thread* lanes[32] = {};
  uint32_t alive = 0;
  uint64_t phase[32] = {};
  std::vector<Rendezvous> open;
  uint32_t brought[32][10], result[32][4];
};

struct Cluster {
  Barrier barrier;
  uint32_t exited = 0, threads = 0;
};

struct Block {
  Dim3 index;
  uint32_t id = 0, rank = 0, exited = 0;
  Cluster* cluster = nullptr;
  char* shared = nullptr;
  Barrier barriers[16];
  std::vector<Warp> warps;
};

struct Copy {
  char* to;
  const char* from;
  uint32_t bytes, valid;
  Place where;
};

struct Thread {
  Dim3 index;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint32_t lane = 0, id = 0;
  bool done = false;
  // waits while *phase == seen
  const uint64_t* phase = nullptr;
  uint64_t seen = 0;
  const char* waits_for = "";
  Place at;
  uint64_t cluster_phase = 0;
  bool cluster_arrived = false;
  uint32_t now = 1, stores = 0;
  Known known, fenced, to_acquire, last_acquired;
  Known carried, carried_from;  // by asynchronous stores since the last read
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
  struct Fiber* fiber = nullptr;
};

struct Epoch {
  uint32_t agent = ~0u, clock = 0;
  Place place;
  bool atomic = false;
};

// Two bytes of memory: the last write, the reads since, and whether an asynchronous copy is due.
struct Cell {
  Epoch write;
  std::vector<Epoch> reads;
  uint32_t pending = 0, compact_at = 32;
  Place pending_place;
};

struct Memory {
  char* data;
  uint64_t bytes, guard;
  std::string name;
  uint32_t kind;
  Block* owner;
  std::vector<Cell> cells;
};

struct AsyncStore {
  char* to;
  uint8_t value[16];
  uint32_t bytes, agent, clock;
  Known carried;
  Place where;
};

struct Mbarrier {
  uint32_t count = 0, waiting = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
  bool fenced = false;
  Thread* creator = nullptr;
  Known open, done;
  std::vector<AsyncStore> stores;
};

struct Machine {
  Machine(const Launch& l, Dim3 g, Dim3 b, Dim3 c) : launch(l), grid(g), block(b), cluster(c) {}
  const Launch& launch;
  Dim3 grid, block, cluster;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::vector<Thread> threads;
  std::vector<Memory> memories;
  std::unordered_map<const void*, Known> released;
  std::unordered_map<const void*, Mbarrier> mbarriers;
  Barrier grid_barrier;
  uint32_t exited = 0;
  uint64_t progress = 0;
  std::mt19937_64 random;
  std::vector<std::string> issues;
  std::set<std::string> seen_races;
  bool failed = false;
  Thread* current = nullptr;
  const char *stacks = nullptr, *stacks_end = nullptr;  // of the fibers
};

extern Machine* machine;

inline Thread& self() { return *machine->current; }
inline bool tracing() { return machine->launch.races != 0; }
std::string name_of(const Thread& thread);
[[noreturn]] void fail(const char* kind, const std::string& text);

void yield();
void wait_while(const uint64_t& phase, uint64_t seen, const char* what, Place at);
void arrive(Barrier& barrier, uint32_t expected, uint32_t exited, const char* what, Place at);

Known merge(const Known& a, const Known& b);
Known publish(Thread& thread);  // what others learn by acquiring from it now
void acquire(Thread& thread, const Known& from);
void meet(const std::vector<Thread*>& threads);

enum class Access { read, write, atomic_read, atomic_write };
Memory& memory_of(const void* p, uint64_t bytes, const char* verb, Place at);
void check(const void* p, uint64_t bytes, Access kind, Place at);
// The accesses of an asynchronous store, recorded under the agent that performs it.
void record_write(const void* p, uint64_t bytes, const Epoch& epoch);
void set_pending(const void* p, uint64_t bytes, int change, Place at);

}  // namespace simt
