"""The emitted CUDA kernels, executed on this machine, against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_host import HostKernel, Sequence
from problems import Tensors, cast, cotangents, every_cell, problem, run

from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from flashrnn.emit.cuda import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.options import Options
from flashrnn.passes.lower import lower
from flashrnn.runtime.arguments import of_gates
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tolerance import compare


def tiling_of(p: CudaProblem, per_warp: int, part: int = 2) -> BlockTiling:
    """With 1/part of R in registers."""
    return BlockTiling(-(-p.tiles // per_warp), per_warp, p.k_tiles // part)


def kernel(cell: Cell, direction: str, dtype: Dtype, dims: Dims, per_warp: int, folder):
    p = CudaProblem(lower(cell), direction, dtype, dims)
    return HostKernel(p, tiling_of(p, per_warp), folder)


def check(cell: Cell, dtype: Dtype, dims: Dims, per_warp: int, order: str, folder, **options):
    """Results and gradients of the sequence by the library's tolerance."""
    taken = Options(
        options.get("gradient_clip", math.inf), options.get("gradient_cut", False),
        options.get("reverse", False),
    )  # fmt: skip
    lengths = options.get("lengths")
    arguments = problem(cell, dims.B, dims.T, dims.N, dims.D, dtype.torch)
    exact = _expected(cell, arguments, torch.float64, options)
    eager = _expected(cell, arguments, dtype.torch, options)
    made = {d: kernel(cell, d, dtype, dims, per_warp, folder) for d in (TRAINING, BACKWARD)}
    s = Sequence(lower(cell), dims, arguments)
    s.forward(made[TRAINING], order, lengths, taken)
    d_states, d_last = (c.to(dtype.torch) for c in cotangents((s.states, s.last)))
    s.backward(made[BACKWARD], order, lengths, d_states, d_last, taken)
    got = {"states": s.states, "last": s.last, "d_states": s.d_initial}
    got["d_Wx"] = of_gates(s.d_gates, cell.gates, cell.input)
    if s.d_weights is not None:
        recurrent = len(cell.recurrent) if cell.recurrence != DENSE else 0
        got |= {"d_R": s.d_weights.sum(0)[:recurrent]} if recurrent else {}
        got |= {"d_parameters": s.d_weights.sum(0)[recurrent:]} if cell.parameters else {}
    for name, x in got.items():
        result = compare(name, x.to(dtype.torch), exact[name], eager[name])
        assert result.ok, f"{cell.name} {dtype.name} {dims} {order}: {result}"


def _expected(cell: Cell, arguments: Tensors, dtype: torch.dtype, options) -> Tensors:
    return run(cell, cast(arguments, dtype), "reference", **options)
