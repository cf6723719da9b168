"""What the machine can do: multiply-adds and bytes per second, measured.

Two small kernels, compiled by the project's own toolchain for the device's widest vectors: chains
of multiply-adds that never leave the registers, and a sum over a buffer that fits into one level.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from autotune.device import LEVELS, Cpu, Device
from flashrnn.runtime.build import open_library

SOURCE = """\
// The machine's limits: multiply-adds in registers, and reads.
#include "cpu/simd.hpp"

namespace {{
constexpr int vector_bytes = {vector_bytes};
constexpr int chains = {chains};  // latency times rate of the machine's multiply-add, and some

using S = flashrnn::Simd<float, vector_bytes>;
using Vec = S::Vec;

struct Arguments {{
  const float* data;
  int64_t count;  // vectors of data
  int64_t repeats;
  float* sink;  // where the sums go, so that they are computed
}};
}}  // namespace

FLASHRNN_EXPORT int64_t flashrnn_multiply_adds(const Arguments* a) {{
  Vec sums[chains], x = S::broadcast(0.999f), y = S::broadcast(0.001f);
  flashrnn::unroll<chains>([&](auto k) __attribute__((always_inline)) {{
    sums[k] = S::broadcast(k);  // equal chains would be computed once
  }});
  for (int64_t i = 0; i < a->repeats; ++i) {{
    S::keep_in_register(x);
    S::keep_in_register(y);
    flashrnn::unroll<chains>([&](auto k) __attribute__((always_inline)) {{
      sums[k] = S::fma(sums[k], x, y);
    }});
  }}
  Vec total{{}};
  flashrnn::unroll<chains>([&](auto k) __attribute__((always_inline)) {{ total += sums[k]; }});
  S::store(a->sink, total);
  return a->repeats * chains * S::lanes * 2;
}}

FLASHRNN_EXPORT int64_t flashrnn_reads(const Arguments* a) {{
  Vec sums[chains] = {{}};
  const int64_t count = a->count / chains * chains;
  for (int64_t r = 0; r < a->repeats; ++r) {{
    const float* p = a->data;
    for (int64_t i = 0; i < count; i += chains, p += chains * S::lanes)
      flashrnn::unroll<chains>([&](auto k) __attribute__((always_inline)) {{
        sums[k] += S::load(p + k * S::lanes);
      }});
  }}
  Vec total{{}};
  flashrnn::unroll<chains>([&](auto k) __attribute__((always_inline)) {{ total += sums[k]; }});
  S::store(a->sink, total);
  return a->repeats * count * vector_bytes;
}}
"""
CHAINS = 12
_ARGUMENTS = struct.Struct("=4q")
_ENTRIES = ("flashrnn_multiply_adds", "flashrnn_reads")

SECONDS = 4e-3  # of one measurement: within one slice of a busy machine
ATTEMPTS = 40  # the best one counts: what disturbs a machine only ever slows it down
MEMORY_BYTES = (128 << 20, 1 << 30)  # least and most for a buffer that no cache holds

Task = Callable[[int], int]


@dataclass(frozen=True)
class Level:
    """A cache, or memory. bytes: of one core's part, 0 for memory; rate: bytes per second."""

    bytes: int
    rate: float


@dataclass(frozen=True)
class Roof:
    """So many threads together. flops: operations per second, two per multiply-add."""

    threads: int
    flops: float
    levels: dict[str, Level]

    def home(self, size: int) -> str:
        """The smallest level that holds so many bytes."""
        for name, level in self.levels.items():
            if size <= level.bytes:
                return name
        return LEVELS[-1]

    def bound(self, intensity: float, level: str) -> float:
        """Operations per second with so many operations per byte from a level."""
        return min(self.flops, intensity * self.levels[level].rate)


def measure(threads: int) -> Roof:
    """Measure now, float32. Raises CompilerError."""
    device = Device.current()
    source = SOURCE.format(vector_bytes=device.vector_bytes, chains=CHAINS)
    library = open_library("roofline", source, device, _ENTRIES)
    capacity = {
        "l1": device.l1_bytes,
        "l2": device.l2_bytes,
        "l3": device.l3_bytes // max(1, min(threads, device.l3_cores)),
        "memory": 0,
    }
    with ThreadPoolExecutor(threads) as pool:
        flops = _best(pool, threads, _tasks(library.flashrnn_multiply_adds, threads, 0))
        levels = {}
        for name in LEVELS:
            size = _buffer(device, name, capacity)
            rate = _best(pool, threads, _tasks(library.flashrnn_reads, threads, size // threads
                                               if name == "memory" else size))  # fmt: skip
            levels[name] = Level(capacity[name], rate)
    return Roof(threads, flops, levels)


def _buffer(device: Cpu, level: str, capacity: dict[str, int]) -> int:
    """Bytes that lie in a level for certain, and not in the one before it."""
    if level == "memory":
        least, most = MEMORY_BYTES
        return min(max(least, 4 * device.l3_bytes), most)
    if level == "l3":
        return max(capacity["l3"] // 2, 2 * min(device.l2_bytes, capacity["l3"] // 2))
    return capacity[level] // 2


def _tasks(kernel: Callable[[bytes], int], threads: int, size: int) -> list[Task]:
    """For each thread: run the kernel so many times on a buffer of its own."""
    tasks: list[Task] = []
    for _ in range(threads):
        data = torch.ones(size // 4) if size else torch.ones(1)
        sink = torch.zeros(64)
        vectors = size // Device.current().vector_bytes

        def task(
            repeats: int, data: torch.Tensor = data, sink: torch.Tensor = sink, n: int = vectors
        ) -> int:
            return kernel(_ARGUMENTS.pack(data.data_ptr(), n, repeats, sink.data_ptr()))

        tasks.append(task)
    return tasks


def _best(pool: ThreadPoolExecutor, threads: int, tasks: list[Task]) -> float:
    """Units of work per second, all threads together."""
    repeats = 1
    while (taken := _once(pool, threads, tasks, repeats)[1]) < SECONDS / 2:
        repeats = max(2 * repeats, int(repeats * SECONDS / max(taken, 1e-6) / 2))
    rates = []
    for _ in range(ATTEMPTS):
        work, taken = _once(pool, threads, tasks, repeats)
        rates.append(work / taken)
    return max(rates)


def _once(
    pool: ThreadPoolExecutor, threads: int, tasks: list[Task], repeats: int
) -> tuple[int, float]:
    """Work done, and seconds from the first start to the last end."""
    barrier = threading.Barrier(threads)

    def run(task: Task) -> tuple[int, float, float]:
        barrier.wait()
        start = time.perf_counter()
        work = task(repeats)  # ctypes lets the others run meanwhile
        return work, start, time.perf_counter()

    done = list(pool.map(run, tasks))
    return sum(d[0] for d in done), max(d[2] for d in done) - min(d[1] for d in done)
