"""Tilings of the CUDA schedule "a head in one block" (csrc/cuda/block_forward.hpp and
block_backward.hpp).

A block has 16 rows of the batch and all units of a head; a warp has tiles_per_warp tiles of 8
units. R is a grid of tensor-core operands, k_tiles deep, of which k_tiles_in_registers stay in
registers and the others in shared memory. Shared memory is exact; registers are an estimate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Model
from constrint.expression import Operand
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, Dtype
from flashrnn.emit.cuda import BACKWARD, emit_block
from flashrnn.passes.lower import Program

WARP, ROWS, UNITS_PER_TILE = 32, 16, 8
MOST_WARPS = 16
# Bytes of an operand per warp: 16 bytes per lane on the left, 8 on the right.
LEFT_BYTES, RIGHT_BYTES = 512, 256


@dataclass(frozen=True)
class BlockTiling:
    """A solved tiling. Tiles of 8 units; k tiles of 16 units, of 8 in float32."""

    warps: int
    tiles_per_warp: int
    k_tiles_in_registers: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)


@dataclass(frozen=True)
class CudaProblem:
    """What a tiling depends on: the cell, a direction, a dtype, sizes."""

    program: Program
    direction: str
    dtype: Dtype
    dims: Dims

    @property
    def products(self) -> int:
        """Gates that R feeds by a dense product."""
        return len(self.program.cell.product_gates)

    @property
    def tiles(self) -> int:
        """Tiles of 8 units in a head."""
        return -(-self.dims.D // UNITS_PER_TILE)

    @property
    def k_per_gate(self) -> int:
        """Operands that the units of one gate, or of h, make in a product."""
        return self.tiles if self.dtype == FLOAT32 else -(-self.tiles // 2)

    @property
    def k_tiles(self) -> int:
        """Operands that the terms of the product make."""
        if not self.products:
            return 0
        return self.k_per_gate * (self.products if self.direction == BACKWARD else 1)

    @property
    def columns_per_tile(self) -> int:
        """Tiles of R's columns per tile of units: one per gate forward, one backward."""
        return self.products if self.direction != BACKWARD else min(self.products, 1)


def in_tiles(problem: CudaProblem) -> CudaProblem:
    """The problem with the rows that its tiles have: one plan and one tiling serve all of them."""
    tiles = max(1, -(-problem.dims.B // ROWS))
    return replace(problem, dims=replace(problem.dims, B=tiles * ROWS))


def model(problem: CudaProblem, gpu: Gpu, spare: int = 0) -> Model:
    """Every tiling that fits the GPU; none where R is too large for one block.

    spare: registers per thread to leave beside the estimate.
    """
    m = Model(f"{problem.program.cell.name} {problem.direction}, one block, on sm_{gpu.sm}")
    tiles = problem.tiles
    warps = m.int_var("warps", range(1, min(MOST_WARPS, tiles) + 1))
    per_warp = m.int_var("tiles_per_warp", range(1, tiles + 1))
    held = m.int_var("k_tiles_in_registers", range(problem.k_tiles + 1))
    m.add(warps * per_warp >= tiles, name="every tile of units has a warp")
    m.add((warps - 1) * per_warp < tiles, name="every warp has a tile of units")
    resources.constrain(
        m, gpu.architecture, threads=WARP * warps,
        registers=registers(problem, per_warp, held) + spare,
        shared_bytes=shared_bytes(problem, warps, per_warp, held),
    )  # fmt: skip
    return m


def shared_bytes(problem: CudaProblem, warps: Operand, per_warp: Operand, held: Operand) -> Operand:
    """Bytes of shared memory per block, as the schedule lays them out."""
    program = problem.program
    padded = 4 * UNITS_PER_TILE * problem.tiles
    rest = warps * per_warp * (problem.k_tiles - held) * problem.columns_per_tile * RIGHT_BYTES
    buffers = 2 * problem.k_tiles * LEFT_BYTES
    constants = len(program.weights)
    if problem.direction != BACKWARD:
        constants += len(program.cell.gates)
    return buffers + padded * constants + rest


def registers(problem: CudaProblem, per_warp: Operand, held: Operand) -> Operand:
    """Registers per thread that the compiler needs, R's operands included; an estimate.

    Fitted to where NVRTC 13.5 began to spill; docs/cuda.md has the figures. Where there are
    registers to spare the compiler takes more than it needs, which does no harm. Forward, what is
    alive during the product is what tiles have: accumulators, Wx of this step and the next, states.
    Backward, most is alive in the derivative of one tile, beside the other tiles' states.
    """
    cell = problem.program.cell
    G, S, K = len(cell.gates), len(cell.states), len(problem.program.weights)
    if problem.direction == BACKWARD:
        needed, per_tile = 14 * G + 26, 16 * S + 8 * K
    else:
        wx = 3 if problem.dtype.bytes == 2 else 7
        needed, per_tile = 60, 2 * problem.products + wx * len(cell.input) + 6 * S + 2 * K + 10
    return needed + per_tile * per_warp + 2 * problem.columns_per_tile * per_warp * held


def predict(problem: CudaProblem, tiling: BlockTiling) -> Prediction:
    """What the compiler will need."""
    sizes = tiling.tiles_per_warp, tiling.k_tiles_in_registers
    needed = registers(problem, *sizes)
    shared = shared_bytes(problem, tiling.warps, *sizes)
    assert isinstance(needed, int) and isinstance(shared, int)
    return Prediction(needed, shared, WARP * tiling.warps)


def products_per_step(problem: CudaProblem, tiling: BlockTiling) -> int:
    """Tensor-core instructions of one warp in one step."""
    return problem.columns_per_tile * tiling.tiles_per_warp * problem.k_tiles


def source_of(problem: CudaProblem, tiling: BlockTiling) -> str:
    """The kernel's source for this tiling."""
    return emit_block(
        problem.program, problem.direction, problem.dtype, D=problem.dims.D, **tiling.as_config()
    )
