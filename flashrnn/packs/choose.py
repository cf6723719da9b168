"""The tilings of a pack: what the cost model chooses in each class of shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from autotune.gpu import Gpu
from constrint import Infeasible
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, IEEE, INFERENCE, TF32, TRAINING
from flashrnn.ir.cell import Cell
from flashrnn.packs.pack import Choice, Runs, key_of
from flashrnn.passes.lower import lower
from flashrnn.tiling.triton import (
    ALTERNATING,
    FEWEST_ROWS,
    FUSED,
    MOST_ROWS,
    Tiling,
    TritonProblem,
    cheapest,
    cheapest_of,
    tilings,
)

HEAD_DIMS = (16, 32, 64, 128, 256)
DIRECTIONS = (INFERENCE, TRAINING, BACKWARD)
# Batches and programs by classes: powers of two. Beyond so many programs every GPU is full, and
# one more wave of them is as long as the others.
ROWS = tuple(1 << k for k in range(MOST_ROWS.bit_length()))
MOST_PROGRAMS = 4096

Rejected = Mapping[str, Collection[Tiling]]
NOTHING: Rejected = {}


def problems(cells: Sequence[Cell], head_dims: Sequence[int] = HEAD_DIMS) -> list[TritonProblem]:
    """One for each entry of a pack."""
    kinds = [(dtype, IEEE) for dtype in GPU_BY_NAME.values()] + [(FLOAT32, TF32)]
    return [
        TritonProblem(lower(cell), direction, dtype, Dims(MOST_ROWS, 1, 1, D), precision)
        for cell, direction, (dtype, precision), D in product(cells, DIRECTIONS, kinds, head_dims)
    ]


def choices(
    asked: Sequence[TritonProblem], gpu: Gpu, rejected: Rejected = NOTHING
) -> dict[str, Choice]:
    """A pack's choices for a GPU that need not be there; `rejected` tilings do not take part."""
    return {key_of(p): choice(p, gpu, rejected.get(key_of(p), ())) for p in asked}


def choice(problem: TritonProblem, gpu: Gpu, rejected: Collection[Tiling] = ()) -> Choice:
    """The choice in every class of batches; classes that agree with the next one are left out."""
    found: list[tuple[int, Runs]] = []
    fused: list[Tiling] | None = None
    for B in ROWS:
        at = replace(problem, dims=Dims(B, 1, 1, problem.dims.D))
        if fused is None or B > FEWEST_ROWS:  # below, all are alike
            fused = [t for t in _fused(at, gpu) if t not in rejected]
        if not fused:  # the estimate of these is proportional to N
            runs: Runs = ((None, cheapest(at, gpu, ALTERNATING)),)
        elif B < FEWEST_ROWS:
            continue
        else:
            runs = tuple(_runs(at, gpu, fused))
        if found and found[-1][1] == runs:
            found.pop()
        found.append((B, runs))
    return tuple(found)


def _fused(problem: TritonProblem, gpu: Gpu) -> list[Tiling]:
    try:
        return tilings(problem, gpu, FUSED)
    except Infeasible:
        return []


def _runs(
    problem: TritonProblem, gpu: Gpu, among: Sequence[Tiling]
) -> Iterator[tuple[int | None, Tiling]]:
    """For a batch: up to how many programs which of these tilings is the cheapest."""
    tiles = -(-problem.dims.B // FEWEST_ROWS)
    programs, last = tiles, None
    while programs <= MOST_PROGRAMS:
        dims = replace(problem.dims, N=programs // tiles)
        best = cheapest_of(replace(problem, dims=dims), gpu, among)
        if last is not None and best != last:
            yield programs // 2, last
        programs, last = 2 * programs, best
    assert last is not None
    yield None, last
