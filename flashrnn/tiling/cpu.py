"""Tilings of the CPU schedules (csrc/cpu/forward.hpp, csrc/cpu/backward.hpp).

A register tile is b_per_register rows of the batch times d_per_register units; in the forward
pass every recurrent gate of those units has its own accumulators, in the backward pass there is
one sum per unit. A core runs the whole sequence for b_per_core rows at a time; where there are
fewer such items than threads, cores_d of them share the panels of one and meet after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from autotune.cost import Work, cycles, seconds
from autotune.device import Cpu
from constrint import Model
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD
from flashrnn.passes.lower import Program, pointwise_cost

# Rows of a register tile that serves smaller batches too, so that a batch size that was not seen
# before compiles nothing new, and the batch that it is chosen for.
TYPICAL_ROWS, TYPICAL_BATCH = 6, 16
# Rows whose addresses the general registers hold, and vectors beyond which no tile fits.
MOST_ROWS = 8
MOST_VECTORS = 8
FMA_LATENCY = 4.0
# Beside its products: a register tile's start and end in each stretch of terms, and the memory
# traffic of a vector of units.
TILE_CYCLES = 40.0
POINTWISE_CYCLES = 40.0
# Bytes of a vector that a broadcast fills per load: wider vectors take two passes.
BROADCAST_BYTES = 32
# The part of the first cache that a panel may take and still be there in the next step.
KEPT = 0.75
# The part of a panel's way from its cache that hides behind arithmetic.
OVERLAP = 0.7
# The part of the pointwise arithmetic that does not hide behind the next tile's product.
BESIDE = 0.5
# Until all threads of a team have seen that all have finished a step.
MEETING_CYCLES = 700.0


@dataclass(frozen=True)
class CpuTiling:
    """A solved tiling. Units: rows of the batch, units of a head, threads."""

    b_per_register: int
    d_per_register: int
    b_per_core: int
    cores_d: int = 1

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)

    @staticmethod
    def of_config(config: Mapping[str, int]) -> CpuTiling:
        """The tiling in a solution of the model; KeyError where a variable is missing."""
        return CpuTiling(**{name: config[name] for name in CpuTiling.__dataclass_fields__})


@dataclass(frozen=True)
class CpuProblem:
    """What a tiling depends on: the cell, a direction, a dtype, sizes and threads."""

    program: Program
    direction: str
    dtype: Dtype
    dims: Dims
    threads: int

    @property
    def accumulated(self) -> int:
        """Sums per unit that a register tile holds."""
        return 1 if self.direction == BACKWARD else max(1, len(self.program.cell.product_gates))

    @property
    def contracted(self) -> int:
        """Terms of each sum."""
        gates = len(self.program.cell.product_gates)
        return self.dims.D * (gates if self.direction == BACKWARD else min(gates, 1))


def model(problem: CpuProblem, device: Cpu) -> Model:
    """Every tiling that fits this device. Never empty: one row and one vector always fit."""
    dims, item = problem.dims, problem.dtype.bytes
    lanes = device.vector_bytes // item
    sums, terms = problem.accumulated, problem.contracted
    m = Model(f"{problem.program.cell.name} {problem.direction} on {device.isa}")
    widest = min(MOST_VECTORS, -(-dims.D // lanes))
    rows, fewest = min(MOST_ROWS, max(1, dims.B)), 1 if dims.B == 1 else TYPICAL_ROWS
    b = m.int_var("b_per_register", range(1, max(rows, fewest) + 1))
    d = m.int_var("d_per_register", range(lanes, widest * lanes + 1, lanes))
    core = m.int_var("b_per_core", _row_counts(dims.B))
    vectors = d // lanes
    # Sums; then one vector of R and a broadcast h per row, or, going back, the other way round.
    held = b * vectors if sums == 1 else sums * b * vectors
    registers = held + b + 1 <= device.vector_registers
    if problem.direction == BACKWARD:
        registers = registers | (held + vectors + 1 <= device.vector_registers)
    m.add(registers, name="vector registers: sums and operands")
    m.add(
        (b <= core) | (b <= fewest),
        name=f"no more rows in registers than one core has, or {fewest}",
    )
    # A panel of R is read again for every register tile of rows, so it should stay in L2.
    panel = sums * lanes * terms * item
    m.add(
        sums * d * terms * item <= max(device.l2_bytes // 2, panel),
        name="a panel of R fits half of L2 (bytes)",
    )
    # So are the other factors, for every panel: h, or the gradients of the gates.
    row = max(1, problem.contracted) * item
    m.add(
        core * row <= max(device.l2_bytes // 2, row),
        name="what is multiplied by R fits half of L2 (bytes)",
    )
    tiles = (max(dims.B, 1) + core - 1) // core
    busy = min(problem.threads, max(1, dims.B) * max(1, dims.N))
    m.add(tiles * max(dims.N, 1) >= busy, name="work items for every thread")
    share = m.int_var("cores_d", range(1, max(1, problem.threads // busy) + 1))
    m.add(
        (share == 1) | (share * tiles * max(dims.N, 1) <= problem.threads),
        name="a thread for every member of every team",
    )
    m.add((share - 1) * d < dims.D, name="a panel for every member of a team")
    return m


def cost(config: Mapping[str, int], problem: CpuProblem, device: Cpu) -> float:
    """Estimated seconds of one call, to rank tilings by.

    Every panel is a roofline of its own: the multiply-adds and loads of its register tiles, and the
    panel of R coming once per step from the level that holds all of R. All register tiles make use
    of a stretch of its terms that the first cache holds beside the next one, which is fetched
    meanwhile; a larger one, each reads from the second.
    """
    dims, item = problem.dims, problem.dtype.bytes
    tiling = CpuTiling.of_config(config)
    lanes = device.vector_bytes // item
    vectors = tiling.d_per_register // lanes
    panels = -(-dims.D // tiling.d_per_register)
    own = -(-panels // tiling.cores_d)
    rows = min(tiling.b_per_core, dims.B)
    sums, terms = problem.accumulated, problem.contracted
    panel_bytes = sums * terms * tiling.d_per_register * item
    heads = -(-dims.N // problem.threads)
    source = _level(own * panel_bytes * heads, device)
    program = problem.program
    roots = program.backward if problem.direction == BACKWARD else program.new_states
    pointwise = pointwise_cost(roots) / device.fma_per_cycle + POINTWISE_CYCLES
    # a tile's pointwise part runs beside the next tile's product; the last one's does not
    step = rows * min(own * vectors, -(-dims.D // lanes)) * pointwise * BESIDE
    if tiling.cores_d > 1:
        step += MEETING_CYCLES
    broadcast = max(1.0, device.vector_bytes / BROADCAST_BYTES)
    product, tiles = 0.0, _register_tiles(rows, tiling.b_per_register)
    for tile in tiles:
        arithmetic = Work(
            fma=terms * sums * tile * vectors, loads=terms * (sums * vectors + broadcast * tile)
        )
        product += max(cycles(arithmetic, device), terms * FMA_LATENCY)
    traffic = cycles(Work(bytes={source: panel_bytes}), device)
    stretch = stretch_terms(device.vector_bytes)
    stretches = max(1, -(-terms // stretch))
    if 2 * sums * min(stretch, terms) * tiling.d_per_register * item > device.l1_bytes:
        traffic += cycles(Work(bytes={"l2": (len(tiles) - 1) * panel_bytes}), device)
    # Of a single row's panels, the last ones are still there when the next step begins with them.
    kept = min(own, int(KEPT * device.l1_bytes) // panel_bytes) if rows == 1 and panel_bytes else 0
    step += (own - kept) * max(product + (1.0 - OVERLAP) * traffic, traffic) + kept * product
    step += own * len(tiles) * stretches * TILE_CYCLES
    step += tiles[-1] * vectors * pointwise * (1.0 - BESIDE) if tiles else 0.0
    items = -(-dims.B // tiling.b_per_core) * dims.N
    rounds = -(-items * tiling.cores_d // problem.threads)
    return rounds * dims.T * seconds(Work(overhead_cycles=step), device)


def stretch_terms(vector_bytes: int) -> int:
    """Terms that are summed before they meet the total: `stretch` of csrc/cpu/panels.hpp."""
    return 64 if vector_bytes > 32 else 128


@lru_cache(maxsize=1024)
def default(problem: CpuProblem, device: Cpu) -> CpuTiling:
    """The cheapest tiling by cost, with one register tile for all batch sizes above one.

    So a last, smaller batch, or a longer one, meets a kernel that is compiled already.
    """
    dims = problem.dims
    typical = replace(problem, dims=replace(dims, B=1 if dims.B == 1 else TYPICAL_BATCH))
    tile = _cheapest(
        typical, device, lambda s: s["b_per_register"] <= (1 if dims.B == 1 else TYPICAL_ROWS)
    )
    same = {name: tile[name] for name in ("b_per_register", "d_per_register")}
    return CpuTiling.of_config(
        _cheapest(problem, device, lambda s: same.items() <= dict(s).items())
    )


def _cheapest(
    problem: CpuProblem, device: Cpu, admit: Callable[[Mapping[str, int]], bool]
) -> Mapping[str, int]:
    solutions = (s for s in model(problem, device).solutions() if admit(s))
    return min(solutions, key=lambda s: (cost(s, problem, device), sorted(s.items())))


def _level(size: int, device: Cpu) -> str:
    """The cache that holds that many bytes next to what streams by."""
    if 2 * size <= device.l1_bytes:
        return "l1"
    if 4 * size <= 3 * device.l2_bytes:
        return "l2"
    return "l3" if size <= device.l3_bytes else "memory"


def _register_tiles(rows: int, b: int) -> list[int]:
    """The rows of the register tiles that the schedule cuts `rows` into (csrc/cpu/panels.hpp)."""
    count = -(-rows // b)
    return [rows // count + (i < rows % count) for i in range(count)]


def _row_counts(B: int) -> list[int]:
    """Rows per core worth trying: B in k equal parts, for each k."""
    return sorted({-(-max(B, 1) // k) for k in range(1, max(B, 1) + 1)})
