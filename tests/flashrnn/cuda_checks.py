"""Emitted CUDA kernels, executed on this machine, held to the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from cuda_host import HostKernel, Sequence
from cuda_tilings import Tiled
from problems import Tensors, cast, cotangents, problem, run

from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, Dtype
from flashrnn.emit.cuda import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.options import Options
from flashrnn.passes.lower import lower
from flashrnn.runtime.arguments import of_gates
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tolerance import Comparison, compare

Tile = Callable[[str], Tiled]
Make = Callable[[CudaProblem, Any], HostKernel]


def comparisons(
    cell: Cell, dtype: Dtype, dims: Dims, tile: Tile, order: str, make: Make,
    **options,
) -> list[Comparison]:  # fmt: skip
    """Results and gradients of a sequence; what a kernel does not write is NaN.

    tile: the problem and tiling of a direction; make: the kernel of these.
    """
    taken = Options(
        options.get("gradient_clip", math.inf), options.get("gradient_cut", False),
        options.get("reverse", False),
    )  # fmt: skip
    arguments = problem(cell, dims.B, dims.T, dims.N, dims.D, dtype.torch)
    exact = run(cell, cast(arguments, torch.float64), "reference", **options)
    eager = run(cell, arguments, "reference", **options)
    forward, backward = make(*tile(TRAINING)), make(*tile(BACKWARD))
    lengths = options.get("lengths")
    s = Sequence(lower(cell), dims, arguments)
    s.forward(forward, order, lengths, taken)
    d_states, d_last = (c.to(dtype.torch) for c in cotangents((s.states, s.last)))
    s.backward(backward, order, lengths, d_states, d_last, taken)
    got = {"states": s.states, "last": s.last, "d_states": s.d_initial}
    got["d_Wx"] = of_gates(s.d_gates, cell.gates, cell.input)
    if s.d_weights is not None:
        sums = s.d_weights.sum(0)
        recurrent = len(cell.recurrent) if cell.recurrence != DENSE else 0
        got |= {"d_R": sums[:recurrent]} if recurrent else {}
        got |= {"d_parameters": sums[recurrent:]} if cell.parameters else {}
    return [_compare(name, x.to(dtype.torch), exact, eager) for name, x in got.items()]


def inference(cell: Cell, dtype: Dtype, dims: Dims, tile: Tile, make: Make) -> list[Comparison]:
    """Results of the kernel that saves nothing."""
    arguments = problem(cell, dims.B, dims.T, dims.N, dims.D, dtype.torch)
    exact = run(cell, cast(arguments, torch.float64), "reference")
    eager = run(cell, arguments, "reference")
    s = Sequence(lower(cell), dims, arguments)
    s.forward(make(*tile(INFERENCE)), "random", None)
    return [_compare(n, x, exact, eager) for n, x in (("states", s.states), ("last", s.last))]


def _compare(name: str, got: torch.Tensor, exact: Tensors, eager: Tensors) -> Comparison:
    return compare(name, got, exact[name], eager[name], tf32=got.dtype == FLOAT32.torch)
