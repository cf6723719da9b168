"""What backend="auto" takes for tensors on a GPU.

Triton and the CUDA kernels are ranked by the times that tuning measured, per step since calls of
any length were tuned; one that was measured is preferred to one that was not, for no run of ours
backs the CUDA kernels' model; where neither was, the models' predictions decide.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import torch

from autotune import cache
from autotune.gpu import Gpu
from constrint import Infeasible
from flashrnn.dims import Dims
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.errors import FlashRNNError
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime import cuda_kernels, triton_kernels
from flashrnn.runtime.cuda_check import check_cuda
from flashrnn.runtime.gpu_tensors import gpu_dtype_of, precision_of
from flashrnn.runtime.registry import unsupported_transform
from flashrnn.runtime.triton_check import check_triton
from flashrnn.tiling import triton as triton_tiling
from flashrnn.tiling.cuda import CudaProblem, in_tiles
from flashrnn.tiling.cuda_choice import SCHEDULES, cheapest
from flashrnn.tiling.cuda_latency import alternating_seconds, seconds
from flashrnn.tiling.cuda_step import StepTiling
from flashrnn.tiling.triton import FusedTiling, TritonProblem

TRITON, CUDA, REFERENCE = "triton", "cuda", "reference"
_WORDS = {TRITON: "Triton", CUDA: "CUDA kernels"}
_CHECKS = {TRITON: check_triton, CUDA: check_cuda}


def gpu_choice(Wx: torch.Tensor, cell: Cell) -> tuple[str, str]:
    """The back end for CUDA tensors like Wx [B, T, G_w, N, D], and why."""
    transform = unsupported_transform()
    if transform is not None:
        return REFERENCE, f"fused kernels do not carry {transform}"
    refused = {}
    for name, check in _CHECKS.items():
        try:
            check(Wx)
        except FlashRNNError as error:
            refused[name] = str(error)
    able = [name for name in _CHECKS if name not in refused]
    if not able:
        return REFERENCE, "; ".join(refused.values())
    if Wx.dim() != 5:  # a layer's x [B, T, I], which says nothing of heads
        return able[0], f"kernels of the cell by {able[0]}"
    gpu = triton_kernels.device_of(Wx)
    if able == [TRITON]:
        return TRITON, _triton_reason(_problem(Wx, cell), gpu)
    return _ranked(_problem(Wx, cell), gpu, TRITON in able, cache.generation())


def _problem(Wx: torch.Tensor, cell: Cell) -> TritonProblem:
    """A step of training: how many there are is of no account to which is faster."""
    B, _, _, N, D = Wx.shape
    dtype, precision = gpu_dtype_of(Wx.dtype), precision_of(Wx.dtype)
    return TritonProblem(lower(cell), TRAINING, dtype, Dims(B, 1, N, D), precision)


def _as_cuda(problem: TritonProblem) -> CudaProblem:
    dims = problem.dims
    return in_tiles(CudaProblem(problem.program, problem.direction, problem.dtype, dims))


@lru_cache(maxsize=1024)
def _ranked(problem: TritonProblem, gpu: Gpu, triton: bool, _generation: int) -> tuple[str, str]:
    """The faster of those that were measured, else the one for which less time is predicted.

    triton: whether it is there to be compared with.
    """
    reasons = {CUDA: _cuda_reason(_as_cuda(problem), gpu)}
    if not triton:
        return CUDA, reasons[CUDA]
    reasons[TRITON] = _triton_reason(problem, gpu)
    measured = {
        TRITON: triton_kernels.select(problem, gpu).measured,
        CUDA: cuda_kernels.tuned(_as_cuda(problem), gpu) is not None,
    }
    if measured[TRITON] != measured[CUDA]:
        one, other = (TRITON, CUDA) if measured[TRITON] else (CUDA, TRITON)
        told = f"what was measured comes before a prediction for {_WORDS[other]}"
        return one, f"{told}: {reasons[one]}"
    found = _measured_seconds(problem, gpu) if measured[CUDA] else None
    how = "measured"
    if found is None:
        found = _triton_seconds(problem, gpu), _cuda_seconds(_as_cuda(problem), gpu)[0]
        how = "predicted by models, neither of them measured"
        if measured[CUDA]:
            how = "predicted by models, since tuning did not time both in both directions"
    one = CUDA if found[1] < found[0] else TRITON
    told = (
        f"{1e6 * found[0]:.3g} µs by Triton and {1e6 * found[1]:.3g} µs by CUDA kernels per step, "
        f"forward and backward, {how}"
    )
    return one, f"{told}: {reasons[one]}"


def _triton_reason(problem: TritonProblem, gpu: Gpu) -> str:
    selected = triton_kernels.select(problem, gpu)
    if isinstance(selected.tiling, FusedTiling):
        what = f"a fused Triton kernel holds R of a head on the chip of {gpu.name}"
    else:
        why = triton_tiling.choose(problem, gpu).reason
        why = why or "tuning found it faster than fused kernels"
        what = f"Triton with a product of the library in each step: {why}"
    return f"{what}; its tiling is {selected.by}"


def _cuda_reason(problem: CudaProblem, gpu: Gpu) -> str:
    fused, by = _cuda_seconds(problem, gpu)[1], "model-chosen, not measured"
    why = f"none holds a head on {gpu.name}"
    selected = cuda_kernels.tuned(problem, gpu)
    if selected is not None:
        by = selected.by
        if fused:
            why = "tuning found it faster than fused kernels"
        fused = not isinstance(selected.tiling, StepTiling)
    what = f"a CUDA kernel per step and a product of the library: {why}"
    if fused:
        what = f"CUDA kernels hold R of a head on {gpu.name}"
    return f"{what}; their tiling is {by}"


def _measured_seconds(problem: TritonProblem, gpu: Gpu) -> tuple[float, float] | None:
    """Of a step forward and backward, by Triton and by CUDA; None where not all were timed."""
    totals = [0.0, 0.0]
    for direction in (TRAINING, BACKWARD):
        one = replace(problem, direction=direction)
        keys = triton_kernels.problem_key(one), cuda_kernels.problem_key(_as_cuda(one))
        for i, key in enumerate(keys):
            step = cache.step_seconds(key, gpu)
            if step is None:
                return None
            totals[i] += step
    return totals[0], totals[1]


def _triton_seconds(problem: TritonProblem, gpu: Gpu) -> float:
    """Predicted of a step forward and backward."""
    both = (replace(problem, direction=direction) for direction in (TRAINING, BACKWARD))
    return sum(triton_tiling.cost(p, triton_kernels.select(p, gpu).tiling, gpu) for p in both)


@lru_cache(maxsize=1024)
def _cuda_seconds(problem: CudaProblem, gpu: Gpu) -> tuple[float, bool]:
    """Predicted of a step forward and backward, and whether R stays on the chip in both."""
    total, fused = 0.0, True
    for direction in (TRAINING, BACKWARD):
        one, found = replace(problem, direction=direction), []
        for schedule in SCHEDULES:  # `choose` would look for why none fits
            with suppress(Infeasible):
                found.append(seconds(one, cheapest(one, gpu, schedule), gpu))
        fused = fused and bool(found)
        total += min(found, default=alternating_seconds(one, gpu))
    return total, fused
