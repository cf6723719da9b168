"""How long a CUDA kernel takes by a model: a prediction, which no measurement of ours backs.

A recurrence of a few rows is bound by the latency of its steps: what a step waits for before and
after its product. One step is

    fixed(exchange) + blocks * arrival + bytes / rate(exchange) + rounds * L2 latency
        + max(product, its longest chain, operands from shared memory) + pointwise

where `bytes` is the operand that each block takes from the others, a warp fetching six tiles of it
per round. While one of several tiles of rows in flight waits, the others are computed: a step of k
of them is

    max(step of one, k * busy, k * bytes / rate)

`busy` is what a block cannot do for two tiles at once: the fixed part of a step in one block, where
nobody waits for another, product and pointwise part, and in a grid the release's fence and the
bytes, which warps fetch. The grid's fixed part, its rate and what a backward step costs more are
fitted to published times of another implementation on one H100 (`fit`, PUBLISHED); the error of
each is in docs/cuda.md. The cluster's, and the latencies, are those of Luo et al., "Benchmarking
and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking" (2024); the block's and the
fence's are assumptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.gpu import Gpu
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID
from flashrnn.passes.lower import pointwise_cost
from flashrnn.tiling import cuda_spread
from flashrnn.tiling.cuda import LEFT_BYTES, RIGHT_BYTES, ROWS, BlockTiling, CudaProblem
from flashrnn.tiling.cuda_spread import SpreadTiling
from flashrnn.tiling.cuda_step import StepTiling

BLOCK = "block"
Tiling = BlockTiling | SpreadTiling  # of the schedules that keep R on the chip
AnyTiling = Tiling | StepTiling

# FlashRNN (Poeppel et al. 2024), fused CUDA kernels of an LSTM on one H100: D -> milliseconds
# forward, and forward with backward, at B 16, T 1024, N D = 768, bfloat16.
PUBLISHED = {
    16: (3.56, 8.22),
    32: (2.90, 8.20),
    64: (3.10, 8.64),
    128: (3.22, 9.02),
    256: (3.62, 11.3),
    768: (4.87, 13.61),
}
# The same with a library's product and a pointwise kernel in each step.
PUBLISHED_ALTERNATING = {
    16: (7.84, 17.88),
    32: (8.12, 18.8),
    64: (8.19, 20.5),
    128: (8.80, 21.66),
    256: (10.47, 33.48),
    768: (10.79, 26.49),
}
PUBLISHED_STEPS, PUBLISHED_GATES = 1024, 4
# Cycles of a tensor-core instruction that waits for the one before, and of a load from L2.
PRODUCT_CYCLES, L2_CYCLES = 33, 273
FETCHED_AHEAD = 6  # csrc/cuda/exchange.hpp
FENCE_CYCLES = 700  # of a grid's release, part of its fixed cycles; an assumption
TURN_CYCLES = 60  # to shared memory and back, and a barrier; an assumption
START_CYCLES = 200  # until a block that a multiprocessor was given runs; an assumption
# Cycles of a warp for one number of a lane per unit of the op table's cost.
UNIT_CYCLES = 0.6


@dataclass(frozen=True)
class Constants:
    """Seconds. backward: what the fixed part of a backward step is, in forward ones."""

    fixed: Mapping[str, float]
    arrival: float
    seconds_per_byte: Mapping[str, float]
    backward: float


def fit(published: Mapping[int, tuple[float, float]]) -> tuple[float, float, float]:
    """A grid's fixed seconds, seconds per byte, and the factor of a backward step's fixed part.

    Least squares of relative errors of

        forward = fixed + per_byte * 32 D,  backward = factor * fixed + gates * per_byte * 32 D
    """
    rows, ones = [], []
    for D, (forward, both) in published.items():
        size = 2.0 * ROWS * D
        for measured, row in (
            (forward, (1.0, 0.0, size)),
            (both - forward, (0.0, 1.0, PUBLISHED_GATES * size)),
        ):
            seconds = measured * 1e-3 / PUBLISHED_STEPS
            rows.append([x / seconds for x in row])
            ones.append(1.0)
    (fixed, backward, per_byte), *_ = np.linalg.lstsq(np.array(rows), np.array(ones), rcond=None)
    return float(fixed), float(per_byte), float(backward / fixed)


_FIXED, _PER_BYTE, _BACKWARD = fit(PUBLISHED)
# An arrival is one addition in L2, of which all blocks of a group share one address.
_ARRIVAL = 2e-9
_CLOCK = 1.755e9  # of the H100 of the figures in cycles
CONSTANTS = Constants(
    fixed={BLOCK: 900 / _CLOCK, CLUSTER: 1300 / _CLOCK, GRID: _FIXED},
    arrival=_ARRIVAL,
    seconds_per_byte={BLOCK: 0.0, CLUSTER: 1 / (14 * _CLOCK), GRID: _PER_BYTE},
    backward=_BACKWARD,
)


@dataclass(frozen=True)
class Work:
    """What one step of one tile of rows asks of a multiprocessor."""

    exchange: str
    blocks: int  # that share a head
    bytes: int  # that a block takes from the others
    products: int  # tensor-core instructions of all warps
    chain: int  # of them one after another
    shared_bytes: int  # read from shared memory by all warps
    elements: int  # units times rows of a lane of the busiest warp
    warps: int
    turns: int = 0  # of warps that add their sums one after another, beside the first


def work(problem: CudaProblem, tiling: Tiling) -> Work:
    """Of one step of one tile of rows."""
    if isinstance(tiling, BlockTiling):
        tiles = problem.columns_per_tile * tiling.tiles_per_warp
        rest = (problem.k_tiles - tiling.k_tiles_in_registers) * tiles * RIGHT_BYTES
        read = tiling.warps * (problem.k_tiles * LEFT_BYTES + rest)
        return Work(
            BLOCK, 1, 0, tiling.warps * tiles * problem.k_tiles, problem.k_tiles, read,
            4 * tiling.tiles_per_warp, tiling.warps,
        )  # fmt: skip
    s = cuda_spread.sizes(problem, tiling)
    columns, k, elements = s.columns_per_warp, s.k_per_warp, s.elements
    assert isinstance(columns, int) and isinstance(k, int) and isinstance(elements, int)
    warps = tiling.warps
    left = (k - tiling.k_tiles_in_registers) * columns * RIGHT_BYTES
    own = k * LEFT_BYTES if tiling.exchange == CLUSTER else 0
    sums = warps * cuda_spread.SUM_BYTES * columns
    if not problem.products:
        return Work(tiling.exchange, tiling.blocks, 0, 0, 0, 0, elements, warps)
    return Work(
        tiling.exchange, tiling.blocks, problem.k_tiles * LEFT_BYTES, warps * columns * k, k,
        warps * (left + own) + sums, elements, warps, tiling.warps_k - tiling.sum_parts,
    )  # fmt: skip


def step_seconds(problem: CudaProblem, tiling: Tiling, gpu: Gpu, spilled_bytes: int = 0) -> float:
    """Predicted seconds of one time step of one block, of all its tiles of rows in flight.

    spilled_bytes: per thread, by the compiler's report, as if each were stored and fetched in every
    step: an access of 4 bytes per thread takes L1 one cycle per warp.
    """
    w, c = work(problem, tiling), CONSTANTS
    in_flight = tiling.tiles_in_flight if isinstance(tiling, SpreadTiling) else 1
    cycles = _cycles(problem, w, gpu) + w.warps * 2 * -(-spilled_bytes // 4) / in_flight
    own = cycles / (gpu.clock_mhz * 1e6)
    longer = c.backward if problem.direction == BACKWARD else 1.0
    arrivals = w.blocks * c.arrival if w.exchange == GRID else 0.0
    exchanged = w.bytes * c.seconds_per_byte[w.exchange]
    alone = c.fixed[w.exchange] * longer + arrivals + exchanged + own
    if in_flight == 1:
        return alone
    busy = c.fixed[BLOCK] * longer + own
    if w.exchange == GRID:
        busy += FENCE_CYCLES / _CLOCK + exchanged
    return max(alone, in_flight * busy, in_flight * exchanged)


def _cycles(problem: CudaProblem, w: Work, gpu: Gpu) -> float:
    """Of the product and the pointwise part of one tile of rows, spilled registers apart."""
    flops = 2 * ROWS * 8 * (8 if problem.dtype == FLOAT32 else 16)
    rate = gpu.tensor_flops_per_cycle / (2 if problem.dtype == FLOAT32 else 1)
    backward = problem.direction == BACKWARD
    roots = problem.program.backward if backward else problem.program.new_states
    waves = -(-w.warps // 4)  # four schedulers share the warps
    pointwise = waves * w.elements * pointwise_cost(roots) * UNIT_CYCLES
    cycles = max(
        w.products * flops / rate, w.chain * PRODUCT_CYCLES,
        w.shared_bytes / gpu.architecture.shared_bytes_per_cycle,
    )  # fmt: skip
    if w.exchange == GRID:
        cycles += (-(-w.chain // FETCHED_AHEAD) - 1) * L2_CYCLES if w.chain else 0
    return cycles + w.turns * TURN_CYCLES + pointwise


def alternating_seconds(problem: CudaProblem, gpu: Gpu) -> float:
    """Predicted seconds of one call of the alternating schedule, which reads R in every step."""
    dims = problem.dims
    fixed, per_byte, factor = fit(PUBLISHED_ALTERNATING)
    backward = problem.direction == BACKWARD
    size = 2.0 * ROWS * dims.D * (problem.products if backward else 1)
    whole = problem.products * dims.N * dims.D**2 * problem.dtype.bytes
    read = 0.0 if whole <= gpu.l2_bytes else whole / gpu.memory_bytes_per_second
    return dims.T * (fixed * (factor if backward else 1.0) + per_byte * size + read)


def seconds(problem: CudaProblem, tiling: AnyTiling, gpu: Gpu, spilled_bytes: int = 0) -> float:
    """Predicted seconds of one call; spilled_bytes as in `step_seconds`."""
    dims = problem.dims
    if isinstance(tiling, StepTiling):
        started = -(-dims.B * dims.N * dims.D // (tiling.threads * gpu.sms))
        starting = dims.T * started * START_CYCLES / (gpu.clock_mhz * 1e6)
        return alternating_seconds(problem, gpu) + starting
    if isinstance(tiling, SpreadTiling):
        items, blocks = cuda_spread.items(dims, tiling), tiling.blocks
    else:
        items, blocks = dims.N * -(-dims.B // ROWS), 1
    waves = -(-items // max(gpu.sms // blocks, 1))
    return waves * dims.T * step_seconds(problem, tiling, gpu, spilled_bytes)
