"""In packs: the Triton kernels of cells.

D is padded to a power of two, as kernels do it. Of B and N counts how many rows a program can be
given, and how many programs of 16 rows there are, both rounded up to powers of two: in the cost
model the choice depends on no more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product

from autotune.gpu import Gpu
from constrint import Infeasible, Model
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, IEEE, INFERENCE, TF32, TRAINING
from flashrnn.ir.cell import Cell
from flashrnn.packs.kind import Choice, Classes, Kind, classes, powers
from flashrnn.passes.lower import lower
from flashrnn.tiling.triton import (
    ALTERNATING,
    FEWEST_ROWS,
    FUSED,
    MOST_ROWS,
    FusedTiling,
    Tiling,
    TritonProblem,
    cheapest,
    cheapest_of,
    choose,
    model,
    schedule_of,
    tiling_of,
    tilings,
)
from flashrnn.tiling.triton_needs import holds_r

HEAD_DIMS = (16, 32, 64, 128, 256)
DIRECTIONS = (INFERENCE, TRAINING, BACKWARD)
# Beyond so many programs every GPU is full, and one more wave is as long as the others.
MOST_PROGRAMS = 4096


class CellKernels(Kind[TritonProblem, Tiling]):
    """Filed by cell, direction, dtype and D; then by rows and programs."""

    name = "triton"

    def key_of(self, problem: TritonProblem) -> str:
        tf32 = problem.dtype == FLOAT32 and problem.precision == TF32
        dtype = "tf32" if tf32 else problem.dtype.name
        return f"{problem.program.cell.key} {problem.direction} {dtype} {problem.padded}"

    def sizes_of(self, problem: TritonProblem) -> tuple[int, int]:
        return problem.dims.B, programs_of(problem.dims)

    def tiling_of(self, config: Mapping[str, int]) -> Tiling:
        return tiling_of(config)

    def model(self, tiling: Tiling, problem: TritonProblem, gpu: Gpu) -> Model:
        return model(problem, gpu, schedule_of(tiling))

    def best(self, problem: TritonProblem, gpu: Gpu) -> Tiling:
        return choose(problem, gpu).tiling

    def choice(
        self, problem: TritonProblem, gpu: Gpu, rejected: Collection[Tiling] = ()
    ) -> Choice[Tiling]:
        def at(B: int) -> TritonProblem:
            return replace(problem, dims=Dims(B, 1, 1, problem.dims.D))

        fused: dict[int, Classes[Tiling]] = {}
        for B in powers(FEWEST_ROWS, MOST_ROWS):
            left = [t for t in _fused(at(B), gpu) if t not in rejected]
            if left:
                fused[B] = _by_programs(at(B), gpu, left)

        def by_programs(B: int) -> Classes[Tiling]:
            tall = max(B, FEWEST_ROWS)  # below, all are alike
            if tall in fused:
                return fused[tall]
            # the estimate of these is proportional to N
            return ((None, cheapest(at(B), gpu, ALTERNATING)),)

        return classes(powers(1, MOST_ROWS), by_programs)

    def kernel_of(self, tiling: Tiling) -> Tiling | None:
        return tiling if isinstance(tiling, FusedTiling) else None

    def usable(self) -> bool:
        return holds_r()


CELLS = CellKernels()


def problems(cells: Sequence[Cell], head_dims: Sequence[int] = HEAD_DIMS) -> list[TritonProblem]:
    """One for each entry of a pack."""
    kinds = [(dtype, IEEE) for dtype in GPU_BY_NAME.values()] + [(FLOAT32, TF32)]
    return [
        TritonProblem(lower(cell), direction, dtype, Dims(MOST_ROWS, 1, 1, D), precision)
        for cell, direction, (dtype, precision), D in product(cells, DIRECTIONS, kinds, head_dims)
    ]


def programs_of(dims: Dims) -> int:
    """Programs of the fewest rows for this batch and these heads."""
    return -(-max(1, dims.B) // FEWEST_ROWS) * dims.N


def _fused(problem: TritonProblem, gpu: Gpu) -> list[Tiling]:
    try:
        return tilings(problem, gpu, FUSED)
    except Infeasible:
        return []


def _by_programs(problem: TritonProblem, gpu: Gpu, among: Sequence[Tiling]) -> Classes[Tiling]:
    tiles = programs_of(problem.dims)  # of one head

    def best(programs: int) -> Tiling:
        dims = replace(problem.dims, N=programs // tiles)
        return cheapest_of(replace(problem, dims=dims), gpu, among)

    return classes(powers(tiles, MOST_PROGRAMS), best)
