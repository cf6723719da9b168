"""Tilings for tests of the CUDA schedules, and a cover of all pairs of what they are tested for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tiling.cuda_spread import SpreadTiling, allowed_units, sizes

BLOCK = "block"
SCHEDULES = (BLOCK, GRID, CLUSTER)
Tiled = tuple[CudaProblem, BlockTiling | SpreadTiling]


def half_held(cell: Cell, direction: str, dtype: Dtype, dims: Dims, per_warp: int) -> Tiled:
    """A head in one block, half of R in registers."""
    p = CudaProblem(lower(cell), direction, dtype, dims)
    return p, BlockTiling(-(-p.tiles // per_warp), per_warp, p.k_tiles // 2)


def spread(
    cell: Cell, direction: str, dtype: Dtype, dims: Dims, exchange: str, units: int,
    warps: tuple[int, int] = (2, 2), sum_parts: int = 2, in_flight: int = 1,
) -> Tiled:  # fmt: skip
    """A head over blocks of `units`, or the next that the direction has, half of R in registers."""
    p = CudaProblem(lower(cell), direction, dtype, dims)
    at_least = next(u for u in allowed_units(p) if u >= units)
    blocks = -(-dims.D // at_least)
    tiling = SpreadTiling(exchange, at_least, blocks, *warps, sum_parts, 0, in_flight)
    return p, replace(tiling, k_tiles_in_registers=sizes(p, tiling).k_per_warp // 2)


def tiled(
    cell: Cell, direction: str, dtype: Dtype, dims: Dims, schedule: str, in_flight: int = 1
) -> Tiled:
    """One of SCHEDULES; a head spread over two to four blocks, the last of them not full.

    in_flight: tiles of rows, where a head is spread.
    """
    if schedule == BLOCK:
        return half_held(cell, direction, dtype, dims, -(-dims.D // 64))
    units = {16: 12, 48: 20, 64: 24, 128: 48}.get(dims.D, 8)
    units = min(units, 8 * -(-dims.D // 8))
    return spread(cell, direction, dtype, dims, schedule, units, in_flight=in_flight)


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Few rows in which every two values of different factors meet: each row takes, factor by
    factor, the value that adds most pairs."""
    names = list(factors)
    missing = {
        frozenset(((a, i), (b, j)))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    rows = []
    while missing:
        row = dict(min(missing, key=sorted))
        for name in names:
            if name in row:
                continue
            gains = [
                sum(frozenset(((name, i), item)) in missing for item in row.items())
                for i in range(len(factors[name]))
            ]
            # among equals another one than last time
            at = [(gain, (i + len(rows)) % len(gains)) for i, gain in enumerate(gains)]
            row[name] = at.index(max(at))
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append({name: factors[name][row[name]] for name in names})
    return rows
