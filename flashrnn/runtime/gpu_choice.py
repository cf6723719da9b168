"""What backend="auto" takes for tensors on a GPU.

Triton and the CUDA kernels are ranked by the time that their models predict. No run of ours backs
the CUDA kernels' model, so a Triton tiling that tuning measured is preferred to a prediction.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import torch

from autotune import cache
from autotune.gpu import Gpu
from constrint import Infeasible
from flashrnn import packs
from flashrnn.dims import Dims
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.errors import FlashRNNError
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime import triton_kernels
from flashrnn.runtime.cuda_check import check_cuda
from flashrnn.runtime.gpu_tensors import gpu_dtype_of, precision_of
from flashrnn.runtime.registry import unsupported_transform
from flashrnn.runtime.selection import UNMEASURED
from flashrnn.runtime.triton_check import check_triton
from flashrnn.tiling import triton as triton_tiling
from flashrnn.tiling.cuda import ROWS, CudaProblem
from flashrnn.tiling.cuda_choice import SCHEDULES, cheapest
from flashrnn.tiling.cuda_latency import alternating_seconds, seconds
from flashrnn.tiling.triton import FusedTiling, TritonProblem

TRITON, CUDA, REFERENCE = "triton", "cuda", "reference"
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
    tiles = max(1, -(-problem.dims.B // ROWS))  # as plans are made
    dims = replace(problem.dims, B=tiles * ROWS)
    return CudaProblem(problem.program, problem.direction, problem.dtype, dims)


@lru_cache(maxsize=1024)
def _ranked(problem: TritonProblem, gpu: Gpu, triton: bool, _generation: int) -> tuple[str, str]:
    """CUDA kernels where no more time is predicted for them, and Triton was not measured.

    triton: whether it is there to be compared with.
    """
    by_cuda, fused = _cuda_seconds(_as_cuda(problem), gpu)
    what = f"a CUDA kernel per step and a product of the library: none holds a head on {gpu.name}"
    if fused:
        what = f"CUDA kernels hold R of a head on {gpu.name}"
    found = packs.lookup(packs.CUDA, _as_cuda(problem), gpu)
    what += f"; their tiling is {UNMEASURED}" + (f": {found.by}" if found else "")
    if not triton:
        return CUDA, what
    by_triton = _triton_reason(problem, gpu)
    if triton_kernels.select(problem, gpu).measured:
        return TRITON, f"what was measured comes before a prediction for CUDA kernels: {by_triton}"
    seconds_of_triton = _triton_seconds(problem, gpu)
    told = (
        f"models predict {1e6 * seconds_of_triton:.3g} µs per step, forward and backward, by "
        f"Triton and {1e6 * by_cuda:.3g} µs by CUDA kernels, neither of them measured: "
    )
    if by_cuda < seconds_of_triton:
        return CUDA, told + what
    return TRITON, told + by_triton


def _triton_reason(problem: TritonProblem, gpu: Gpu) -> str:
    selected = triton_kernels.select(problem, gpu)
    if isinstance(selected.tiling, FusedTiling):
        what = f"a fused Triton kernel holds R of a head on the chip of {gpu.name}"
    else:
        why = triton_tiling.choose(problem, gpu).reason
        why = why or "tuning found it faster than fused kernels"
        what = f"Triton with a product of the library in each step: {why}"
    return f"{what}; its tiling is {selected.by}"


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
        held = packs.lookup(packs.CUDA, one, gpu)
        if held is not None:
            found.append(seconds(one, held.tiling, gpu))
        for schedule in SCHEDULES if held is None else ():  # `choose` would look for why none fits
            with suppress(Infeasible):
                found.append(seconds(one, cheapest(one, gpu, schedule), gpu))
        fused = fused and bool(found)
        total += min(found, default=alternating_seconds(one, gpu))
    return total, fused
