"""Tilings of the scans over time (csrc/cpu/scan_attention.hpp, csrc/cpu/scan_linear.hpp).

A scan is bound by memory: its arithmetic per number is a few operations. So a tiling decides how
memory is gone through, row by row (any other order costs more bandwidth than it saves arithmetic):
how many channels are unrolled, which heads and which stretch of time one core takes, and whether
results pass the caches by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from autotune.cost import Work, seconds
from autotune.device import Cpu
from constrint import Model
from flashrnn.dtypes import Dtype, arithmetic
from flashrnn.emit.cpp import BACKWARD
from flashrnn.emit.scan import ATTENTION

# Rows whose scalars are computed together, and between which sums are joined exactly: `block_rows`
# of csrc/cpu/scan_block.hpp.
BLOCK_ROWS = 64
# Few, so that few kernels are compiled; what is left of a head goes vector by vector.
VECTORS_PER_PANEL = (1, 2, 4, 8)
# Vectors of a panel, over its heads: their instructions stand one behind the other.
MOST_UNROLLED = 16
# Of a vector of scores, for the scalars of scan_block.hpp.
EXPONENTIAL_CYCLES = 20.0
# Of a panel in a row, and of a row that begins within a line.
PANEL_CYCLES = 20.0
ROW_CYCLES = 8.0
# How far ahead of what is read, over all tensors; and the cycles of fetching a line. On Zen 3 it
# gained up to a sixth out of the caches, on Zen 4 it loses up to a quarter: so by tuning alone.
AHEAD_BYTES = 1536
FETCH_CYCLES = 1.0
# Waking the other threads.
PHASE_CYCLES = 20_000.0


@dataclass(frozen=True)
class ScanTiling:
    """A solved tiling. columns: heads of attention, channels of a linear recurrence.

    heads_per_panel: whole heads, of vectors_per_panel vectors each, that share a panel.
    streaming: 1 where results bypass the caches. fetch_ahead: 1 where what is read soon is fetched
    by instructions, not by the hardware alone (ahead_bytes). t_per_chunk: steps that one core takes
    in a row; a whole sequence where that is at least its length.
    """

    vectors_per_panel: int
    heads_per_panel: int
    columns_per_core: int
    t_per_chunk: int
    streaming: int
    fetch_ahead: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)

    @staticmethod
    def of_config(config: Mapping[str, int]) -> ScanTiling:
        """The tiling in a solution of the model."""
        return ScanTiling(**{name: config[name] for name in ScanTiling.__dataclass_fields__})


@dataclass(frozen=True)
class ScanProblem:
    """What a tiling depends on.

    sequences, T: how many and how long (the longest). columns: heads, or channels. width: channels
    of a head, 1 for a linear recurrence. A complex number is two channels.
    """

    kind: str
    direction: str
    storage: Dtype
    is_complex: bool
    sequences: int
    T: int
    columns: int
    width: int
    threads: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.direction}"

    @property
    def real(self) -> Dtype:
        return arithmetic(self.storage)

    @property
    def contiguous(self) -> int:
        """Channels that a panel may span."""
        return self.width if self.kind == ATTENTION else self.columns

    @property
    def row(self) -> int:
        """Channels of a step."""
        return self.columns * self.width

    @property
    def streams(self) -> tuple[int, int]:
        """Tensors of a row's size that are read and that are written."""
        if self.direction == BACKWARD:
            return (3, 1) if self.kind == ATTENTION else (3, 2)
        return (1, 1) if self.kind == ATTENTION else (2, 1)


def model(problem: ScanProblem, device: Cpu) -> Model:
    """Every tiling that fits this device. Never empty."""
    lanes = device.vector_bytes // problem.real.bytes
    T, columns = max(1, problem.T), problem.columns
    m = Model(f"{problem.name} on {device.isa}")
    widest = -(-problem.contiguous // lanes)
    vectors = m.int_var("vectors_per_panel", [k for k in VECTORS_PER_PANEL if k <= widest])
    group = m.int_var("columns_per_core", _column_groups(problem, lanes))
    chunk = m.int_var("t_per_chunk", _chunks(T, problem.threads))
    m.int_var("streaming", (0, 1))
    m.int_var("fetch_ahead", (0, 1) if problem.kind == ATTENTION else (0,))
    # Heads go together where a panel holds each of them whole.
    whole = problem.width // lanes if problem.width % lanes == 0 else 0
    most = problem.columns if problem.kind == ATTENTION and whole in VECTORS_PER_PANEL else 1
    heads = m.int_var("heads_per_panel", [k for k in VECTORS_PER_PANEL if k <= most])
    m.add((heads == 1) | (vectors == whole), name="only whole heads share a panel")
    m.add(heads * vectors <= MOST_UNROLLED, name="vectors of a panel, which are unrolled")
    # Of Block and Prefix, and what the backward pass adds; of a linear scan a, b and h.
    scalars, sums = (4 * BLOCK_ROWS, 6) if problem.kind == ATTENTION else (0, 3)
    per_column = (scalars + sums * problem.width) * problem.real.bytes
    least = min(_column_groups(problem, lanes))
    m.add(
        group * per_column <= max(device.l2_bytes // 2, least * per_column),
        name="a block's scalars and the sums fit half of L2 (bytes)",
    )
    groups = (columns + group - 1) // group
    chunks = (T + chunk - 1) // chunk
    items = problem.sequences * (-(-columns // least)) * (-(-T // BLOCK_ROWS))
    # A short sequence is done before another thread wakes up.
    busy = 1 if _bytes(problem) < device.l2_bytes else min(problem.threads, max(1, items))
    m.add(
        max(1, problem.sequences) * groups * chunks >= busy,
        name="work items for every thread",
    )
    return m


def cost(config: Mapping[str, int], problem: ScanProblem, device: Cpu) -> float:
    """Estimated seconds of one call, to rank tilings by: traffic of the busiest core.

    With more than one chunk, what is read is read twice. A result that is written to memory through
    the caches is fetched first; in the last cache that is hidden.
    """
    t = ScanTiling.of_config(config)
    lanes = device.vector_bytes // problem.real.bytes
    chunks = -(-max(1, problem.T) // t.t_per_chunk)
    groups = -(-problem.columns // t.columns_per_core)
    items = problem.sequences * groups * chunks
    rounds = -(-items // problem.threads)
    steps = min(problem.T, t.t_per_chunk) * rounds
    row = min(t.columns_per_core, problem.columns) * problem.width
    read, written = problem.streams
    passes = 1 if chunks == 1 else 2
    fits = _bytes(problem) <= device.l3_bytes // 4  # others use it too
    source = "l3" if fits else "memory"
    size = problem.storage.bytes
    traffic = {source: float(steps * row * size * read * passes)}
    result = steps * row * size * written
    if t.streaming:
        traffic["memory"] = traffic.get("memory", 0.0) + result
    else:
        traffic[source] += result if fits else 2 * result
    span = min(problem.contiguous, row)
    whole, rest = divmod(-(-span // lanes), t.vectors_per_panel)
    panels = (whole + rest) * (row // span) / min(t.heads_per_panel, t.columns_per_core)
    overhead = steps * panels * PANEL_CYCLES
    exponentials = steps * row / problem.width / lanes if problem.kind == ATTENTION else 0.0
    overhead += exponentials * EXPONENTIAL_CYCLES * passes
    # Lines of a group of heads that another core shares.
    line = 64 // size
    if row % line:
        overhead += steps * ROW_CYCLES
    if t.fetch_ahead:
        overhead += steps * row / line * read * passes * FETCH_CYCLES
    work = Work(
        loads=steps * row / lanes * (read + written),
        bytes=traffic,
        overhead_cycles=overhead * 0.5 + (PHASE_CYCLES if items > 1 else 0.0) * (2 * passes - 1),
    )
    return seconds(work, device)


def ahead_bytes(problem: ScanProblem) -> int:
    """How far ahead of each tensor that is read a tiling with fetch_ahead fetches: whole lines."""
    return AHEAD_BYTES // problem.streams[0] // 64 * 64


@lru_cache(maxsize=4096)
def default(problem: ScanProblem, device: Cpu) -> ScanTiling:
    """The cheapest tiling by cost."""
    solutions = model(problem, device).solutions()
    best = min(solutions, key=lambda s: (cost(s, problem, device), sorted(s.items())))
    return ScanTiling.of_config(best)


def _bytes(problem: ScanProblem) -> int:
    """What one call reads and writes."""
    return (
        problem.sequences * problem.T * problem.row * problem.storage.bytes * sum(problem.streams)
    )


def _column_groups(problem: ScanProblem, lanes: int) -> list[int]:
    """Columns per core worth trying: all of them in k equal parts, of whole vectors."""
    unit = 1 if problem.kind == ATTENTION else lanes
    units = -(-problem.columns // unit)
    counts = {-(-units // k) for k in range(1, min(units, 8 * problem.threads) + 1)}
    if units > 512:  # so that the smallest part fits a cache
        counts |= {1 << k for k in range(3, 10)}
    return sorted({min(c * unit, max(problem.columns, unit)) for c in counts})


def _chunks(T: int, threads: int) -> list[int]:
    """Chunk lengths worth trying: T in k parts of whole blocks."""
    blocks = -(-T // BLOCK_ROWS)
    parts = {1} | ({threads, 2 * threads, 4 * threads} if threads > 1 else set())
    return sorted({-(-blocks // min(k, blocks)) * BLOCK_ROWS for k in parts})
