"""In packs: the CUDA kernels of cells.

D is as it is. Of B and N counts whether a head has several tiles of 16 rows, which blocks can have
in flight, and how many tiles all heads have, rounded up to powers of two: by the latency model the
choice depends on no more where a head's tiles are one or even.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

from autotune.gpu import Gpu
from constrint import Infeasible, Model
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT32, GPU_BY_NAME
from flashrnn.emit.cuda import CLUSTER, DIRECTIONS, GRID
from flashrnn.ir.cell import Cell
from flashrnn.packs.kind import Choice, Classes, Kind, classes, powers
from flashrnn.passes.lower import lower
from flashrnn.tiling.cuda import ROWS, BlockTiling, CudaProblem
from flashrnn.tiling.cuda_choice import (
    SCHEDULES,
    cheapest_of,
    choose,
    model,
    schedule_of,
    tilings,
)
from flashrnn.tiling.cuda_latency import Tiling
from flashrnn.tiling.cuda_spread import MOST_IN_FLIGHT, SpreadTiling, most_in_flight

HEAD_DIMS = (64, 128, 256, 512, 1024)
# Beyond so many tiles of rows every GPU is full, and one more wave is as long as the others.
MOST_TILES = 1024


class CudaKernels(Kind[CudaProblem, Tiling]):
    """Filed by cell, direction, dtype and D; then by tiles of rows, of a head and of all heads."""

    name = "cuda"

    def key_of(self, problem: CudaProblem) -> str:
        cell, dtype = problem.program.cell.key, problem.dtype.name
        return f"{cell} {problem.direction} {dtype} {problem.dims.D}"

    def sizes_of(self, problem: CudaProblem) -> tuple[int, int]:
        tiles = -(-problem.dims.B // ROWS)
        return tiles, problem.dims.N * tiles

    def tiling_of(self, config: Mapping[str, int]) -> Tiling:
        fields: dict[str, Any] = dict(config)
        if "exchange" not in fields:
            return BlockTiling(**fields)
        if fields["exchange"] not in (CLUSTER, GRID):
            raise ValueError(f"the exchange {fields['exchange']!r} is neither of {CLUSTER}, {GRID}")
        return SpreadTiling(**fields)

    def model(self, tiling: Tiling, problem: CudaProblem, gpu: Gpu) -> Model:
        return model(problem, gpu, schedule_of(tiling))

    def best(self, problem: CudaProblem, gpu: Gpu) -> Tiling:
        return choose(problem, gpu)

    def choice(
        self, problem: CudaProblem, gpu: Gpu, rejected: Collection[Tiling] = ()
    ) -> Choice[Tiling]:
        """Empty where no schedule holds a head."""
        # all that the models ask of a dtype, so that one answer serves both of 16 bits
        wide = problem.dtype == FLOAT32
        alike = replace(problem, dtype=FLOAT32 if wide else BFLOAT16)
        return _choice(alike, gpu, frozenset(rejected))

    def kernel_of(self, tiling: Tiling) -> Tiling:
        return tiling


CUDA = CudaKernels()


def problems(cells: Sequence[Cell], head_dims: Sequence[int] = HEAD_DIMS) -> list[CudaProblem]:
    """One for each entry of a pack."""
    return [
        CudaProblem(lower(cell), direction, dtype, Dims(ROWS, 1, 1, D))
        for cell, direction, dtype, D in product(cells, DIRECTIONS, GPU_BY_NAME.values(), head_dims)
    ]


@lru_cache(maxsize=256)
def _choice(problem: CudaProblem, gpu: Gpu, rejected: frozenset[Tiling]) -> Choice[Tiling]:
    def at(per_head: int, tiles: int) -> CudaProblem:
        dims = Dims(ROWS * per_head, 1, tiles // per_head, problem.dims.D)
        return replace(problem, dims=dims)

    most = most_in_flight(at(MOST_IN_FLIGHT, MOST_IN_FLIGHT))
    alike: dict[tuple[str, int, int], list[Tiling]] = {}
    for tiling in _fitting(at(most, most), gpu):
        if tiling not in rejected:
            alike.setdefault(_shared(tiling), []).append(tiling)
    # of those that share as much among as many blocks, one is the cheapest for any number of tiles
    left = [cheapest_of(at(most, most), gpu, among) for among in alike.values()]
    if not left:
        return ()

    def chosen(per_head: int) -> Classes[Tiling]:
        some = [tiling for tiling in left if _shared(tiling)[2] <= per_head]
        sizes = powers(per_head, MOST_TILES)
        return classes(sizes, lambda tiles: cheapest_of(at(per_head, tiles), gpu, some))

    return classes(range(1, most + 1), chosen)


@lru_cache(maxsize=4)
def _fitting(problem: CudaProblem, gpu: Gpu) -> list[Tiling]:
    """Of all schedules. Remembered for when some of them are rejected."""
    found: list[Tiling] = []
    for schedule in SCHEDULES:
        with suppress(Infeasible):
            found += tilings(problem, gpu, schedule)
    return found


def _shared(tiling: Tiling) -> tuple[str, int, int]:
    """The schedule, the blocks of a head, and its tiles of rows that they have in flight."""
    if isinstance(tiling, BlockTiling):
        return schedule_of(tiling), 1, 1
    return schedule_of(tiling), tiling.blocks, tiling.tiles_in_flight
