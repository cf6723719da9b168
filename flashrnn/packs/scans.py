"""In packs: the Triton kernels of scan attention.

The width is padded to a power of two. The length and the rows, heads of all sequences, are rounded
up to powers of two; of the length that is how plans are made. Lengths above LONGEST are in none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product

from autotune.gpu import Gpu
from constrint import Model
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.packs.kind import Choice, Classes, Kind, classes, powers
from flashrnn.tiling.triton_scan import (
    SHORTEST_CHUNK,
    TritonScanProblem,
    TritonScanTiling,
    cheapest,
    cheapest_of,
    model,
    tilings,
)

WIDTHS = (16, 32, 64, 128, 256)
LONGEST = 65536
# Beyond so many rows every GPU is full.
MOST_ROWS = 4096


class ScanKernels(Kind[TritonScanProblem, TritonScanTiling]):
    """Filed by direction, dtype and width; then by length and rows."""

    name = "triton-scan"

    def key_of(self, problem: TritonScanProblem) -> str:
        dtype = problem.storage.name + ("-complex" if problem.is_complex else "")
        return f"{problem.name} {dtype} {problem.padded}"

    def sizes_of(self, problem: TritonScanProblem) -> tuple[int, int]:
        return problem.T, problem.rows

    def tiling_of(self, config: Mapping[str, int]) -> TritonScanTiling:
        return TritonScanTiling.of_config(config)

    def model(self, _tiling: TritonScanTiling, problem: TritonScanProblem, gpu: Gpu) -> Model:
        return model(problem, gpu)

    def best(self, problem: TritonScanProblem, gpu: Gpu) -> TritonScanTiling:
        return cheapest(problem, gpu)

    def choice(
        self,
        problem: TritonScanProblem,
        gpu: Gpu,
        rejected: Collection[TritonScanTiling] = (),
    ) -> Choice[TritonScanTiling]:
        def by_rows(T: int) -> Classes[TritonScanTiling]:
            at = replace(problem, T=T)
            every = tilings(at, gpu)
            # there is no other schedule to take where the compiler liked none
            left = [t for t in every if self.kernel_of(t) not in rejected] or every
            return classes(
                powers(1, MOST_ROWS), lambda rows: cheapest_of(replace(at, rows=rows), gpu, left)
            )

        return classes(powers(SHORTEST_CHUNK, LONGEST), by_rows, closed=True)

    def kernel_of(self, tiling: TritonScanTiling) -> TritonScanTiling:
        return replace(tiling, t_per_chunk=SHORTEST_CHUNK)  # which kernels are told when they run


SCANS = ScanKernels()


def problems(widths: Sequence[int] = WIDTHS) -> list[TritonScanProblem]:
    """One for each entry of a pack."""
    return [
        TritonScanProblem(ATTENTION, direction, dtype, False, 1, SHORTEST_CHUNK, width)
        for direction, dtype, width in product((FORWARD, BACKWARD), GPU_BY_NAME.values(), widths)
    ]
