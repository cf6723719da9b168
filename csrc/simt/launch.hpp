// What a test hands over to run a kernel. Mirrored by tests/simt/simt_driver.py.
#pragma once

#include <cstdint>
#include <functional>

namespace simt {

enum RegionKind : uint32_t { read_only, output, read_write };
enum Order : uint32_t { forward, reverse, random };

// Global memory that the kernel may touch, and the bytes around it that nothing else occupies.
struct Region {
  void* data;
  uint64_t bytes, guard;
  const char* name;
  uint64_t kind;
};

struct Launch {
  uint32_t grid[3], block[3], cluster[3];
  uint32_t shared_bytes, order, races;
  uint64_t seed, region_count;
  const Region* regions;
  char* report;  // one line per issue
  uint64_t report_bytes;
};

// The number of issues.
int run(const Launch& launch, const std::function<void()>& kernel);

}  // namespace simt
