"""Tilings of the scans' Triton kernels (emit/triton_scan_attention.py, emit/triton_scan_linear.py).

A program takes one row (a head of a sequence; for a linear recurrence a sequence), d_per_program
of its channels and t_per_chunk steps. With a single chunk one kernel goes through memory once:
the sequential schedule. Where rows and channels leave multiprocessors idle, several chunks keep
them busy, for inputs that are read twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Model
from constrint.expression import Operand
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.tiling.triton import compiler_options
from flashrnn.tiling.triton_needs import WARP, largest

FLOAT_BYTES = 4
# Rows of the smallest product, and channels of its operands.
FEWEST = 16
CHANNELS = (16, 32, 64, 128)
LINEAR_CHANNELS = (32, 64, 128, 256, 512)
STEPS = (16, 32)
LINEAR_STEPS = (4, 8, 16)
WARPS = (1, 2, 4, 8)
# So many chunks at most, that the pass which joins them stays short; of at least so many steps.
MOST_CHUNKS, SHORTEST_CHUNK = 1024, 64
# Of a tile in one thread: at 16, attention's kernels spilled.
MOST_NUMBERS, LINEAR_NUMBERS = 8, 16
# Operands of a product in one thread, its numbers times the terms of each: at twice it, kernels
# took all registers, and some spilled.
MOST_WORDS = 128
# Of the cost model, none of them measured: cycles that a program waits in one block, and the
# seconds of a launch.
BLOCK_CYCLES, LAUNCH_SECONDS = 2000.0, 4e-6
# The part of the shorter one that the longer one of memory and latencies does not hide.
OVERLAP = 0.1


@dataclass(frozen=True)
class TritonScanTiling:
    """A solved tiling. t_per_chunk: a whole sequence where it is at least its length."""

    t_per_block: int
    d_per_program: int
    t_per_chunk: int
    num_warps: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)

    @staticmethod
    def of_config(config: Mapping[str, int]) -> TritonScanTiling:
        """The tiling in a solution of the model."""
        return TritonScanTiling(**config)

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return compiler_options(self.num_warps, 1)


@dataclass(frozen=True)
class TritonScanProblem:
    """What a tiling depends on.

    kind: ATTENTION or LINEAR. rows: sequences times heads, or sequences. T: of the longest.
    width: channels of a row. A complex number is one channel of two numbers.
    """

    kind: str
    direction: str
    storage: Dtype
    is_complex: bool
    rows: int
    T: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.direction}"

    @property
    def padded(self) -> int:
        """The width as programs divide it: a power of two."""
        fewest = FEWEST if self.kind == ATTENTION else WARP
        return max(fewest, 1 << (self.width - 1).bit_length())

    @property
    def streams(self) -> tuple[int, int]:
        """Tensors of a row's size that `finish` reads and writes; `totals` reads one less."""
        if self.direction == BACKWARD:
            return (3, 1) if self.kind == ATTENTION else (3, 2)
        return (1, 1) if self.kind == ATTENTION else (2, 1)


def model(problem: TritonScanProblem, gpu: Gpu) -> Model:
    """Every tiling that fits the GPU. Never empty."""
    m = Model(f"{problem.name} on sm_{gpu.sm}")
    attention = problem.kind == ATTENTION
    widths = CHANNELS if attention else LINEAR_CHANNELS
    t = m.int_var("t_per_block", STEPS if attention else LINEAR_STEPS)
    d = m.int_var("d_per_program", [c for c in widths if c <= problem.padded])
    m.int_var("t_per_chunk", _chunks(problem.T))
    warps = m.int_var("num_warps", WARPS)
    numbers = t * d if attention else t * d * _numbers(problem)
    most = MOST_NUMBERS if attention else LINEAR_NUMBERS
    m.add(numbers <= most * WARP * warps, name="numbers of a tile per thread")
    if attention:
        m.add(t * t * d <= MOST_WORDS * WARP * warps, name="words per thread of a product")
        m.add(t * d >= 2 * WARP * warps, name="two numbers of a tile for every thread")
    else:
        m.add(d >= WARP * warps, name="a channel for every thread")
    resources.constrain(
        m, gpu.architecture, threads=WARP * warps, registers=_registers(problem, t, d, warps),
        shared_bytes=_shared_bytes(problem, t, d),
    )  # fmt: skip
    return m


def predict(problem: TritonScanProblem, tiling: TritonScanTiling) -> Prediction:
    """What the compiler will need for `finish`, the largest of the kernels."""
    t, d, warps = tiling.t_per_block, tiling.d_per_program, tiling.num_warps
    registers, shared = _registers(problem, t, d, warps), _shared_bytes(problem, t, d)
    assert isinstance(registers, int) and isinstance(shared, int)
    return Prediction(min(registers, int(tiling.options["maxnreg"])), shared, WARP * warps)


def _numbers(problem: TritonScanProblem) -> int:
    return 2 if problem.is_complex else 1


def _registers(problem: TritonScanProblem, t: Operand, d: Operand, warps: Operand) -> Operand:
    """A fit to what ptxas took for sm_90 with a cap: it takes what it is allowed to."""
    per_thread = t * d // (WARP * warps)
    if problem.kind == ATTENTION:
        base = 210 if problem.direction == BACKWARD else 150
        return base + 32 * (t * t * d // (WARP * warps)) // 100
    tensors = 3 if problem.direction == BACKWARD else 2
    return 32 + (tensors + 2) * _numbers(problem) * per_thread


def _shared_bytes(problem: TritonScanProblem, t: Operand, d: Operand) -> Operand:
    """What passes through on its way to a product: a triangle of weights and a tile, in float32.

    One at a time forward, both backward beside a row of sums. Not what sums over many warps take.
    """
    if problem.kind != ATTENTION:
        return 0
    if problem.direction == BACKWARD:
        return (t * t + t * d + d) * FLOAT_BYTES
    return largest(t * t, t * d) * FLOAT_BYTES


def cost(config: Mapping[str, int], problem: TritonScanProblem, gpu: Gpu) -> float:
    """Estimated seconds of one call: memory, or the longest chain of blocks, whichever is longer.

    With more than one chunk inputs are read twice, and three kernels are launched.
    """
    t = TritonScanTiling.of_config(config)
    T = max(1, problem.T)
    chunks, parts = -(-T // t.t_per_chunk), -(-problem.width // t.d_per_program)
    read, written = problem.streams
    passes = read + written + (0 if chunks == 1 else max(1, read - 1))
    padded = parts * t.d_per_program / problem.width
    item = problem.storage.bytes * _numbers(problem)
    moved = problem.rows * T * problem.width * item * passes
    needed = predict(problem, t)
    resident = max(1, resources.occupancy(
        gpu.architecture, needed.threads, needed.registers, needed.shared_bytes
    ))  # fmt: skip
    programs = problem.rows * chunks * parts
    waves = -(-programs // (resident * gpu.sms))
    # residents of a multiprocessor share its arithmetic: a triangle's products
    work = 0.0
    if problem.kind == ATTENTION:
        work = t.t_per_block * t.t_per_block * t.d_per_program / gpu.architecture.fp32_fma_per_cycle
    sharing = min(resident, -(-programs // gpu.sms))
    block = max(BLOCK_CYCLES, sharing * work * padded)
    blocks = -(-min(T, t.t_per_chunk) // t.t_per_block) * waves * (1 if chunks == 1 else 2)
    launches = LAUNCH_SECONDS * (1 if chunks == 1 else 3)
    join = chunks * BLOCK_CYCLES / 2 if chunks > 1 else 0.0
    chain = (blocks * block + join) / (gpu.clock_mhz * 1e6)
    memory = moved / gpu.memory_bytes_per_second
    return max(memory, chain) + OVERLAP * min(memory, chain) + launches


def tilings(problem: TritonScanProblem, gpu: Gpu) -> list[TritonScanTiling]:
    """Every tiling that fits. The rows take no part."""
    return [TritonScanTiling.of_config(s) for s in model(problem, gpu).solutions()]


@lru_cache(maxsize=1024)
def cheapest(problem: TritonScanProblem, gpu: Gpu) -> TritonScanTiling:
    """The cheapest tiling by cost."""
    return cheapest_of(problem, gpu, tilings(problem, gpu))


def cheapest_of(
    problem: TritonScanProblem, gpu: Gpu, among: Sequence[TritonScanTiling]
) -> TritonScanTiling:
    """The cheapest by cost of some tilings, at least one."""

    def key(tiling: TritonScanTiling) -> tuple[float, list[tuple[str, int]]]:
        config = tiling.as_config()
        return cost(config, problem, gpu), sorted(config.items())

    return min(among, key=key)


def _chunks(T: int) -> list[int]:
    """Chunk lengths worth trying: T in a power of two of equal parts, of whole blocks."""
    lengths = {-(-max(1, T) // k) for k in (1 << e for e in range(MOST_CHUNKS.bit_length()))}
    whole = {-(-n // SHORTEST_CHUNK) * SHORTEST_CHUNK for n in lengths}
    return sorted(whole)
