"""Which Triton kernel serves a call: the tiling by the model, its source, its module."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from autotune import cache
from autotune.device import Device
from autotune.gpu import Gpu
from flashrnn import packs
from flashrnn.dims import Dims
from flashrnn.emit.triton_alternating import emit_alternating
from flashrnn.emit.triton_fused import emit_fused
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime import gpu_tensors
from flashrnn.runtime.gpu_tensors import gpu_dtype_of, precision_of
from flashrnn.runtime.triton_build import module_of
from flashrnn.runtime.tuned import Selected, remembered
from flashrnn.tiling import triton as tiling
from flashrnn.tiling.triton import (
    AlternatingTiling,
    FusedTiling,
    Tiling,
    TritonProblem,
    tiling_of,
)

# What the interpreter runs on a CPU is tiled for this GPU.
INTERPRETED_FOR = "h100-sxm"


@dataclass(frozen=True)
class Plan:
    """A kernel and its tiling."""

    tiling: Tiling
    module: ModuleType

    def launch(self, sizes: tuple[int, int, int], *arguments: Any) -> None:
        """Run it on a grid over rows, heads and units; sizes: B, N, D."""
        B, N, D = sizes
        grid = -(-B // self.tiling.b_per_program), N, -(-D // self.tiling.d_per_program)
        self.module.run[grid](*arguments, **self.tiling.options)


_plans: dict[object, tuple[int, Plan]] = {}


def plan_for(cell: Cell, direction: str, like: torch.Tensor, dims: Dims) -> Plan:
    """The plan for these sizes, in the dtype and on the device of `like`; T takes no part."""
    gpu, interpreted = device_of(like), not like.is_cuda
    precision = precision_of(like.dtype)
    key = (cell.key, direction, like.dtype, dims.B, dims.N, dims.D, precision, gpu, interpreted)
    known = _plans.get(key)
    if known is None or known[0] != cache.generation():
        dtype = gpu_dtype_of(like.dtype)
        problem = TritonProblem(lower(cell), direction, dtype, replace(dims, T=1), precision)
        chosen = tiling.choose(problem, gpu).tiling if interpreted else select(problem, gpu).tiling
        source = source_of(problem, chosen, interpreted=interpreted)
        plan = Plan(chosen, module_of(f"{cell.name}-{direction}", source))
        known = _plans[key] = cache.generation(), plan
    return known[1]


def select(problem: TritonProblem, gpu: Gpu) -> Selected[Tiling]:
    """What tuning left for this problem, else what is used without."""
    tuned = remembered(problem_key(problem), gpu, problem.program.cell.name, tiling_of)
    return tuned or untuned(problem, gpu)


def untuned(problem: TritonProblem, gpu: Gpu) -> Selected[Tiling]:
    """What a pack holds for this problem, else the cost model's choice."""
    found = packs.lookup(problem, gpu)
    if found is not None:
        return Selected(found.tiling, f"model-chosen, not measured: {found.by}")
    return Selected(tiling.choose(problem, gpu).tiling, "model-chosen, not measured")


def problem_key(problem: TritonProblem) -> dict[str, int | str]:
    """What a tuned tiling is remembered under, of whichever schedule."""
    dims, program = problem.dims, problem.program
    some = FusedTiling(16, problem.padded, 4, 1, problem.products), AlternatingTiling(1, 16, 1)
    # kernels that are written otherwise are others
    written = "".join(source_of(problem, tiling) for tiling in some)
    return {
        "kernel": f"{program.cell.key} {problem.direction} triton",
        "dtype": problem.dtype.name,
        "precision": problem.precision,
        "B": dims.B,
        "N": dims.N,
        "D": dims.D,
        "source": hashlib.sha256(written.encode()).hexdigest()[:16],
    }


def source_of(problem: TritonProblem, chosen: Tiling, *, interpreted: bool = False) -> str:
    """The Triton module for this tiling."""
    shared = {
        "D": problem.dims.D,
        "b_per_program": chosen.b_per_program,
        "d_per_program": chosen.d_per_program,
    }
    program, direction, dtype = problem.program, problem.direction, problem.dtype
    if isinstance(chosen, AlternatingTiling):
        return emit_alternating(program, direction, dtype, **shared, interpreted=interpreted)
    return emit_fused(
        program, direction, dtype, **shared, gates_in_registers=chosen.gates_in_registers,
        precision=problem.precision, interpreted=interpreted,
    )  # fmt: skip


def device_of(like: torch.Tensor) -> Gpu:
    """The GPU that the tensor is on; the one that stands in for it in the interpreter."""
    return gpu_tensors.device_of(like) if like.is_cuda else Device.named(INTERPRETED_FOR)
