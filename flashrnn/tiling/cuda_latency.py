"""How long a CUDA kernel takes by a model, whose constants were fitted to measured times.

A recurrence of a few rows is bound by the latency of its steps. One step of one tile of rows is

    fixed(exchange) + bytes / rate(exchange) + rounds * L2 round
        + max(product, its longest chain, operands from shared memory)
        + accesses * (warps of a scheduler * ISSUE_CYCLES + WAIT_CYCLES)

`bytes` is the operand that each block takes from the others. Within a cluster every block stores
its part to all of them, which takes time by its size; in a grid a warp fetches it from L2, six
tiles of it per round. `accesses` are a lane's loads and stores of global memory (Wx, states, what
is saved, gradients), with their addresses and the arithmetic between them, which adds nothing to
the fit on its own. While one of several tiles of rows in flight waits, the others are computed: a
step of k of them is

    max(step of one, k * busy)

`busy` is what a block cannot do for two tiles at once: all but what the exchange's fixed part has
beyond a step in one block. That is an assumption; no kernel with two tiles was timed.

The constants are fitted by least squares of relative errors to 156 steps of kernels without spills
on an H200, an LSTM's, a GRU's and an sLSTM's with heads of 64 to 1024: 9 % off in the root mean
square (tests/flashrnn/test_measured_steps.py; docs/cuda.md). Cycles scale with another GPU's clock,
which is an assumption too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.gpu import Gpu
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, TRAINING
from flashrnn.tiling import cuda_spread
from flashrnn.tiling.cuda import LEFT_BYTES, RIGHT_BYTES, ROWS, BlockTiling, CudaProblem
from flashrnn.tiling.cuda_spread import SpreadTiling
from flashrnn.tiling.cuda_step import StepTiling

BLOCK = "block"
Tiling = BlockTiling | SpreadTiling  # of the schedules that keep R on the chip
AnyTiling = Tiling | StepTiling

# FlashRNN (Poeppel et al. 2024), CUDA kernels of an LSTM on one H100 with a library's product and a
# pointwise kernel in each step: D -> milliseconds forward, and forward with backward, at B 16,
# T 1024, N D = 768, bfloat16.
PUBLISHED_ALTERNATING = {
    16: (7.84, 17.88),
    32: (8.12, 18.8),
    64: (8.19, 20.5),
    128: (8.80, 21.66),
    256: (10.47, 33.48),
    768: (10.79, 26.49),
}
PUBLISHED_STEPS, PUBLISHED_GATES = 1024, 4
# Cycles of a tensor-core instruction that waits for the one before.
PRODUCT_CYCLES = 33
FETCHED_AHEAD = 6  # csrc/cuda/exchange.hpp
FENCE_CYCLES = 700  # of a grid's release, part of its fixed cycles; an assumption
SCHEDULERS = 4  # of a multiprocessor
TURN_CYCLES = 60  # to shared memory and back, and a barrier; an assumption
START_CYCLES = 200  # until a block that a multiprocessor was given runs; an assumption
# Of a load or store: of its scheduler, by each of the warps that share it; of the warp alone.
ISSUE_CYCLES, WAIT_CYCLES = 42.0, 41.0


@dataclass(frozen=True)
class Exchanging:
    """What a step takes for its exchange: seconds, seconds per byte, and per round of fetching."""

    fixed: float
    per_byte: float = 0.0
    per_round: float = 0.0


EXCHANGES = {
    BLOCK: Exchanging(0.17e-6),
    CLUSTER: Exchanging(0.14e-6, per_byte=0.127e-9),
    GRID: Exchanging(1.01e-6, per_round=0.281e-6),
}


def fit(published: Mapping[int, tuple[float, float]]) -> tuple[float, float, float]:
    """Fixed seconds, seconds per byte, and the factor of a backward step's fixed part.

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


@dataclass(frozen=True)
class Work:
    """What one step of one tile of rows asks of a multiprocessor."""

    exchange: str
    bytes: int  # that a block takes from the others
    products: int  # tensor-core instructions of all warps
    chain: int  # of them one after another
    shared_bytes: int  # read from shared memory by all warps
    accesses: int  # of global memory by a lane of the busiest warp
    warps: int
    turns: int = 0  # of warps that add their sums one after another, beside the first


def work(problem: CudaProblem, tiling: Tiling) -> Work:
    """Of one step of one tile of rows."""
    if isinstance(tiling, BlockTiling):
        tiles = problem.columns_per_tile * tiling.tiles_per_warp
        rest = (problem.k_tiles - tiling.k_tiles_in_registers) * tiles * RIGHT_BYTES
        read = tiling.warps * (problem.k_tiles * LEFT_BYTES + rest)
        pairs = 2 * tiling.tiles_per_warp
        return Work(
            BLOCK, 0, tiling.warps * tiles * problem.k_tiles, problem.k_tiles, read,
            pairs * _tensors(problem), tiling.warps,
        )  # fmt: skip
    s = cuda_spread.sizes(problem, tiling)
    columns, k, elements, units = s.columns_per_warp, s.k_per_warp, s.elements, s.units_per_lane
    assert isinstance(columns, int) and isinstance(k, int)
    assert isinstance(elements, int) and isinstance(units, int)
    warps, accesses = tiling.warps, elements // units * _tensors(problem)
    if not problem.products:
        return Work(tiling.exchange, 0, 0, 0, 0, accesses, warps)
    left = (k - tiling.k_tiles_in_registers) * columns * RIGHT_BYTES
    own = k * LEFT_BYTES if tiling.exchange == CLUSTER else 0
    sums = warps * cuda_spread.SUM_BYTES * columns
    return Work(
        tiling.exchange, problem.k_tiles * LEFT_BYTES, warps * columns * k, k,
        warps * (left + own) + sums, accesses, warps, tiling.warps_k - tiling.sum_parts,
    )  # fmt: skip


def _tensors(problem: CudaProblem) -> int:
    """How many numbers of each unit and row a step loads and stores."""
    program, cell = problem.program, problem.program.cell
    if problem.direction == BACKWARD:
        read = len(program.saved) + program.states_read + len(cell.states)
        return read + len(cell.gates)
    saved = len(program.saved) if problem.direction == TRAINING else 0
    return len(cell.input) + len(cell.states) + saved


def step_seconds(problem: CudaProblem, tiling: Tiling, gpu: Gpu, spilled_bytes: int = 0) -> float:
    """Predicted seconds of one time step of one block, of all its tiles of rows in flight.

    spilled_bytes: per thread, by the compiler's report, as if each were stored and fetched in every
    step: an access of 4 bytes per thread takes L1 one cycle per warp.
    """
    w = work(problem, tiling)
    exchange = EXCHANGES[w.exchange]
    in_flight = tiling.tiles_in_flight if isinstance(tiling, SpreadTiling) else 1
    cycles = _cycles(problem, w, gpu) + w.warps * 2 * -(-spilled_bytes // 4) / in_flight
    own = cycles / (gpu.clock_mhz * 1e6) + w.bytes * exchange.per_byte
    own += -(-w.chain // FETCHED_AHEAD) * exchange.per_round
    alone = exchange.fixed + own
    if in_flight == 1:
        return alone
    busy = min(exchange.fixed, EXCHANGES[BLOCK].fixed) + own
    if w.exchange == GRID:
        busy += FENCE_CYCLES / (gpu.clock_mhz * 1e6)
    return max(alone, in_flight * busy)


def _cycles(problem: CudaProblem, w: Work, gpu: Gpu) -> float:
    """Of a product and of what is loaded and stored, spilled registers apart."""
    flops = 2 * ROWS * 8 * (8 if problem.dtype == FLOAT32 else 16)
    rate = gpu.tensor_flops_per_cycle / (2 if problem.dtype == FLOAT32 else 1)
    product = max(
        w.products * flops / rate, w.chain * PRODUCT_CYCLES,
        w.shared_bytes / gpu.architecture.shared_bytes_per_cycle,
    )  # fmt: skip
    waiting = -(-w.warps // SCHEDULERS) * ISSUE_CYCLES + WAIT_CYCLES
    return product + w.turns * TURN_CYCLES + w.accesses * waiting


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
