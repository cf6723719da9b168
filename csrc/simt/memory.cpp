// Loads and stores: within bounds, and ordered with those of other threads.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>

#include "simt/machine.hpp"

namespace simt {

Place Place::address(const void* at) {
  Place place;
  place.bits = reinterpret_cast<std::uintptr_t>(at);
  place.is_address = true;
  return place;
}

std::string Place::text() const {
  char text[512] = "nowhere";
  if (is_address) {
    Dl_info info{};
    const char* base = nullptr;
    if (dladdr(reinterpret_cast<void*>(bits), &info) != 0) base = static_cast<char*>(info.dli_fbase);
    std::snprintf(text, sizeof text, "<%zx>", bits - reinterpret_cast<std::uintptr_t>(base));
  } else if (bits != 0) {
    std::source_location where;
    std::memcpy(static_cast<void*>(&where), &bits, sizeof bits);
    const char* file = std::strrchr(where.file_name(), '/');
    std::snprintf(text, sizeof text, "%s:%u:%u", file ? file + 1 : where.file_name(), where.line(),
                  where.column());
  }
  return text;
}

std::string name_of(const Thread& thread) {
  const Dim3 &b = thread.block->index, &t = thread.index;
  char text[96];
  std::snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

void fail(const char* kind, const std::string& text) { throw Fault{kind, text}; }

namespace {

std::string name_of(uint32_t agent) {
  const uint32_t count = uint32_t(machine->threads.size());
  if (agent < count) return name_of(machine->threads[agent]);
  return "an asynchronous store of " + name_of(machine->threads[agent - count]);
}

bool holds(const Memory& m, const char* p, uint64_t bytes) {
  return p >= m.data && p + bytes <= m.data + m.bytes;
}

bool near(const Memory& m, const char* p) {
  return p >= m.data - m.guard && p < m.data + m.bytes + m.guard;
}

std::string distance(const Memory& m, const char* p, uint64_t bytes) {
  const std::string of = m.name + " (" + std::to_string(m.bytes) + " bytes)";
  if (p < m.data) return std::to_string(m.data - p) + " bytes before " + of;
  return std::to_string(p + bytes - (m.data + m.bytes)) + " bytes past the end of " + of;
}

bool before_now(const Epoch& e) {
  const Thread& thread = self();
  return e.agent == ~0u || e.agent == thread.id || (*thread.known)[e.agent] >= e.clock;
}

bool read_before_now(const Epoch& e) {
  return before_now(e) || (*self().known)[2 * machine->threads.size() + e.agent] >= e.clock;
}

void report_race(const char* kind, const Memory& m, const char* p, const char* verb, Place at,
                 const Epoch& other, const char* other_verb) {
  const std::string here = at.text(), there = other.place.text();
  if (!machine->seen_races.insert(std::string(kind) + m.name + here + there).second) return;
  if (machine->issues.size() > 32) return;
  machine->issues.push_back("race: " + std::string(kind) + " in " + m.name + " at byte " +
                            std::to_string(p - m.data) + ": " + name_of(self()) + " " + verb +
                            " at " + here + " what " + name_of(other.agent) + " " + other_verb +
                            " at " + there + ", and nothing orders the two");
}

// Drops reads that the newest one comes after: whoever comes after it comes after them.
void add_read(Cell& cell, const Epoch& read) {
  if (!cell.reads.empty() && cell.reads.back().agent == read.agent) {
    cell.reads.back() = read;
    return;
  }
  if (cell.reads.size() >= cell.compact_at) {
    std::erase_if(cell.reads, [](const Epoch& e) { return before_now(e); });
    cell.compact_at = uint32_t(2 * cell.reads.size() + 32);
  }
  cell.reads.push_back(read);
}

void check_cell(Memory& m, Cell& cell, const char* p, bool write, bool atomic, Place at) {
  if (cell.pending > 0) {
    fail("in-flight", name_of(self()) + (write ? " writes " : " reads ") + m.name + " at byte " +
                          std::to_string(p - m.data) + ", " + at.text() +
                          ", where an asynchronous copy has not landed that was issued at " +
                          cell.pending_place.text());
  }
  const char* verb = write ? "writes" : "reads";
  // a write of which we know that it has been read, all that an asynchronous store may tell us
  const bool read_since = write && std::any_of(cell.reads.begin(), cell.reads.end(), read_before_now);
  if (!(atomic && cell.write.atomic) && !before_now(cell.write) && !read_since) {
    report_race(write ? "write-after-write" : "read-after-write", m, p, verb, at, cell.write, "wrote");
  }
  const Epoch now{self().id, self().now, at, atomic};
  if (!write) {
    self().carried.reset();
    return add_read(cell, now);
  }
  for (const Epoch& read : cell.reads) {
    if (!(atomic && read.atomic) && !read_before_now(read)) {
      report_race("write-after-read", m, p, verb, at, read, "read");
      break;
    }
  }
  cell.reads.clear();
  cell.write = now;
}

}  // namespace

Memory& memory_of(const void* p, uint64_t bytes, const char* verb, Place at) {
  Machine& m = *machine;
  const char* q = static_cast<const char*>(p);
  Block& own = *self().block;
  if (holds(m.memories[own.id], q, bytes)) return m.memories[own.id];
  Memory* close = nullptr;
  for (Memory& memory : m.memories) {
    if (holds(memory, q, bytes)) {
      const Block* owner = memory.owner;
      const uint64_t threads = m.threads.size() / m.blocks.size();
      if (owner == nullptr) return memory;
      if (owner->cluster != own.cluster) {
        fail("out-of-bounds", name_of(self()) + " " + verb + " shared memory of block " +
                                  std::to_string(owner->id) + ", which is not in its cluster, at " +
                                  at.text());
      }
      if (owner->exited == threads) {
        fail("exited", name_of(self()) + " " + verb + " shared memory of block " +
                           std::to_string(owner->id) + ", which has ended, at " + at.text());
      }
      return memory;
    }
    if (close == nullptr && near(memory, q)) close = &memory;
  }
  fail("out-of-bounds",
       name_of(self()) + " " + verb + " " + std::to_string(bytes) + " bytes at " + at.text() + ", " +
           (close ? distance(*close, q, bytes) : "far from all memory that the launch names"));
}

void check(const void* p, uint64_t bytes, Access kind, Place at) {
  const bool write = kind == Access::write || kind == Access::atomic_write;
  const bool atomic = kind == Access::atomic_read || kind == Access::atomic_write;
  Memory& m = memory_of(p, bytes, write ? "writes" : "reads", at);
  if (write && m.kind == read_only) {
    fail("read-only", name_of(self()) + " writes to " + m.name + " at " + at.text());
  }
  if (write) ++machine->progress;
  const char* q = static_cast<const char*>(p);
  if (m.cells.empty()) return;
  for (int64_t i = (q - m.data) / 2; i <= int64_t(q - m.data + bytes - 1) / 2; ++i) {
    check_cell(m, m.cells[i], m.data + 2 * i, write, atomic, at);
  }
}

void record_write(const void* p, uint64_t bytes, const Epoch& epoch) {
  const char* q = static_cast<const char*>(p);
  for (Memory& m : machine->memories) {
    if (!holds(m, q, bytes) || m.cells.empty()) continue;
    for (int64_t i = (q - m.data) / 2; i <= int64_t(q - m.data + bytes - 1) / 2; ++i) {
      m.cells[i].write = epoch;
      m.cells[i].reads.clear();
    }
  }
}

void set_pending(const void* p, uint64_t bytes, int change, Place at) {
  const char* q = static_cast<const char*>(p);
  for (Memory& m : machine->memories) {
    if (!holds(m, q, bytes) || m.cells.empty()) continue;
    for (int64_t i = (q - m.data) / 2; i <= int64_t(q - m.data + bytes - 1) / 2; ++i) {
      m.cells[i].pending += change;
      m.cells[i].pending_place = at;
    }
  }
}

namespace {

void check_aligned(const void* p, uint32_t size, Place at) {
  if (reinterpret_cast<std::uintptr_t>(p) % (size & -size) == 0) return;
  fail("misaligned", name_of(self()) + " accesses " + std::to_string(size) + " bytes at " +
                         at.text() + " that are not aligned to their size");
}

}  // namespace

namespace bytes {

void load(void* to, const void* from, uint32_t size, std::source_location where) {
  check(from, size, Access::read, where);
  check_aligned(from, size, where);
  std::memcpy(to, from, size);
}

void store(void* to, const void* from, uint32_t size, std::source_location where) {
  check(to, size, Access::write, where);
  check_aligned(to, size, where);
  std::memcpy(to, from, size);
}

void* map_shared(void* p, uint32_t rank, std::source_location where) {
  Block& own = *self().block;
  if (!holds(machine->memories[own.id], static_cast<char*>(p), 1) || rank >= cluster_blocks()) {
    fail("out-of-bounds", name_of(self()) + " maps an address to block " + std::to_string(rank) +
                              " of its cluster of " + std::to_string(cluster_blocks()) + " at " +
                              Place(where).text() + "; it must lie in its own shared memory");
  }
  for (Block& block : machine->blocks) {
    if (block.cluster == own.cluster && block.rank == rank) {
      return block.shared + (static_cast<char*>(p) - own.shared);
    }
  }
  return nullptr;
}

}  // namespace bytes

void* dynamic_shared() { return self().block->shared; }
Dim3 thread_index() { return self().index; }
Dim3 block_index() { return self().block->index; }
Dim3 block_size() { return machine->block; }
Dim3 grid_size() { return machine->grid; }
Dim3 cluster_size() { return machine->cluster; }
uint32_t lane() { return self().lane; }
uint32_t warp() { return uint32_t(self().warp - self().block->warps.data()); }
uint32_t cluster_rank() { return self().block->rank; }
uint32_t cluster_blocks() { return uint32_t(machine->blocks.size() / machine->clusters.size()); }

}  // namespace simt
