"""Which Triton kernels serve a scan: their tiling, their source, their module."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from autotune import cache
from autotune.gpu import Gpu
from flashrnn.emit.scan import ATTENTION
from flashrnn.emit.triton_scan_attention import emit_scan_attention
from flashrnn.emit.triton_scan_linear import emit_scan_linear
from flashrnn.packs import SCANS
from flashrnn.runtime import selection
from flashrnn.runtime.gpu_tensors import on_device
from flashrnn.runtime.triton_build import module_of
from flashrnn.runtime.triton_kernels import device_of
from flashrnn.runtime.tuned import Selected
from flashrnn.tiling.triton_scan import SHORTEST_CHUNK, TritonScanProblem, TritonScanTiling

Tensor = torch.Tensor
TOTALS, JOIN, FINISH = "totals", "join", "finish"


@dataclass(frozen=True)
class TritonScanPlan:
    """The kernels of one direction and their tiling."""

    problem: TritonScanProblem
    tiling: TritonScanTiling
    module: ModuleType

    def chunks(self, T: int) -> int:
        """Of a longest sequence of T steps; 1 is the sequential schedule."""
        return max(1, -(-T // self.tiling.t_per_chunk))

    @property
    def parts(self) -> int:
        """Programs that share a row's channels."""
        return -(-self.problem.width // self.tiling.d_per_program)

    def launch(self, kernel: str, like: Tensor, rows: int, chunks: int, *arguments: Any) -> None:
        """Run `kernel` on a grid over rows, chunks and channels, on the device of `like`."""
        with on_device(like):
            run = getattr(self.module, kernel)
            run[rows, chunks, self.parts](*arguments, **self.tiling.options)


_plans: dict[object, tuple[int, TritonScanPlan]] = {}


def plan_for(problem: TritonScanProblem, like: Tensor) -> TritonScanPlan:
    """The plan for a problem on the device of `like`; T takes part as the next power of two."""
    gpu, interpreted = device_of(like), not like.is_cuda
    key = (problem, gpu, interpreted)
    known = _plans.get(key)
    if known is None or known[0] != cache.generation():
        chosen = SCANS.best(problem, gpu) if interpreted else select(problem, gpu).tiling
        known = _plans[key] = cache.generation(), load(problem, chosen, interpreted=interpreted)
    return known[1]


def select(problem: TritonScanProblem, gpu: Gpu) -> Selected[TritonScanTiling]:
    """What tuning left for this problem, else a pack's tiling, else the model's; says which."""
    return selection.select(SCANS, problem, gpu, problem_key(problem))


def rounded(T: int) -> int:
    """The length that a problem of T steps is solved and tuned for."""
    return max(SHORTEST_CHUNK, 1 << max(0, T - 1).bit_length())


def problem_key(problem: TritonScanProblem) -> dict[str, int | str]:
    """What a tuned tiling is remembered under."""
    some = TritonScanTiling(16, 32, 64, 1)
    written = source_of(problem, some)  # kernels that are written otherwise are others
    return {
        "kernel": f"{problem.name} triton",
        "dtype": problem.storage.name + (" complex" if problem.is_complex else ""),
        "rows": problem.rows,
        "T": problem.T,
        "D": problem.width,
        "source": hashlib.sha256(written.encode()).hexdigest()[:16],
    }


def source_of(
    problem: TritonScanProblem, chosen: TritonScanTiling, *, interpreted: bool = False
) -> str:
    """The Triton module for this tiling."""
    shared: dict[str, Any] = {
        "D": problem.width,
        "t_per_block": chosen.t_per_block,
        "d_per_program": chosen.d_per_program,
        "interpreted": interpreted,
    }
    if problem.kind == ATTENTION:
        return emit_scan_attention(problem.direction, problem.storage, **shared)
    return emit_scan_linear(
        problem.direction, problem.storage, is_complex=problem.is_complex, **shared
    )


def load(
    problem: TritonScanProblem, chosen: TritonScanTiling, *, interpreted: bool = False
) -> TritonScanPlan:
    """The plan with this tiling."""
    source = source_of(problem, chosen, interpreted=interpreted)
    return TritonScanPlan(problem, chosen, module_of(_name(problem), source))


def _name(problem: TritonScanProblem) -> str:
    words = f"{problem.name}-{problem.storage.name}".replace(" ", "-")
    return words + ("-complex" if problem.is_complex else "")
