"""Call a compiled kernel on torch tensors: allocate results, pack pointers and strides."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch

from autotune.device import Device
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.kernels import Plan, plan_for
from flashrnn.runtime.openmp import parallel_region

Tensor = torch.Tensor

# ForwardArguments and BackwardArguments of csrc/cpu, field by field, 8 bytes each.
_FORWARD = struct.Struct("=5q 4q 6q 3q 7q")
_BACKWARD = struct.Struct("=3q 5q q 6q q 5q 3q 7q")


class Forward(NamedTuple):
    """states [S, B, T, N, D] (or h alone, [1, B, T, N, D]), last [S, B, 1, N, D], saved."""

    states: Tensor
    last: Tensor
    saved: Tensor


class Backward(NamedTuple):
    """d_gates [B, T, G, N, D], d_initial [S, B, 1, N, D] (may be empty), d_weights [B, K, N, D]."""

    d_gates: Tensor
    d_initial: Tensor
    d_weights: Tensor


def time_major(x: Tensor) -> bool:
    """Whether [B, T, ...] lies in memory with T outermost; results follow the input in this."""
    return x.stride(0) < x.stride(1) and x.shape[0] > 1 and x.shape[1] > 1


def empty_sequence(like: Tensor, lead: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
    """An uninitialised [*lead, B, T, *tail] whose B and T are ordered in memory as `like`'s."""
    B, T = like.shape[0], like.shape[1]
    if time_major(like):
        k = len(lead)
        return like.new_empty((*lead, T, B, *tail)).transpose(k, k + 1)
    return like.new_empty((*lead, B, T, *tail))


def saved_shape(cell: Cell, dims: Dims, dtype: Dtype) -> tuple[int, ...]:
    """Shape of what the forward pass saves: whole vectors of D, all saved values side by side."""
    lanes = Device.current().vector_bytes // dtype.bytes
    return (dims.T, dims.B, dims.N, -(-dims.D // lanes), len(lower(cell).saved), lanes)


def forward(
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    weights: Tensor | None,
    initial: Tensor | None,
    *,
    save: bool,
) -> Forward:
    """All T steps.

    wx [B, T, G_w, N, D], its last dimension contiguous; the others contiguous: r [G_r, N, D, P],
    bias [G, N, D], weights [K, N, D], initial [S, B, 1, N, D].
    """
    B, T, _, N, D = wx.shape
    dims, dtype, threads = Dims(B, T, N, D), dtype_of(wx.dtype), torch.get_num_threads()
    S = len(cell.states)
    states = empty_sequence(wx, (S,), (dims.N, dims.D))
    last = wx.new_empty((S, dims.B, 1, dims.N, dims.D))
    saved = wx.new_empty(saved_shape(cell, dims, dtype) if save else 0)
    wb, wt, wg, wn, _ = wx.stride()
    ss, sb, st, sn, _ = states.stride()
    plan = plan_for(cell, FORWARD, dtype, dims, threads)
    pointers = (
        (wx.data_ptr(), wb, wt, wg, wn)
        + (r.data_ptr(), _at(bias), _at(weights), _at(initial))
        + (states.data_ptr(), ss, sb, st, sn, S)
        + (last.data_ptr(), _at(saved if save else None))
    )
    _run(plan, _FORWARD, pointers, wx, dims, threads)
    return Forward(states, last, saved)


def backward(
    cell: Cell,
    r: Tensor,
    weights: Tensor | None,
    initial: Tensor | None,
    states: Tensor,
    saved: Tensor,
    d_states: Tensor | None,
    d_last: Tensor | None,
    *,
    need_initial: bool,
) -> Backward:
    """All T steps, last first.

    states and saved as `forward` returned them. d_states [S, B, T, N, D], last dimension contiguous, or None; d_last [S, B, 1, N, D]
    contiguous, or None.
    """
    S, B, T, N, D = states.shape
    dims, dtype, threads = Dims(B, T, N, D), dtype_of(states.dtype), torch.get_num_threads()
    like, K = states[0], len(lower(cell).weights)
    d_gates = empty_sequence(like, (), (len(cell.gates), dims.N, dims.D))
    d_initial = like.new_empty((S, dims.B, 1, dims.N, dims.D) if need_initial else 0)
    d_weights = like.new_empty((dims.B, K, dims.N, dims.D))
    plan = plan_for(cell, BACKWARD, dtype, dims, threads)
    d_strides = (*d_states.stride()[:4], S) if d_states is not None else (0, 0, 0, 0, 0)
    pointers = (
        (r.data_ptr(), _at(weights), _at(initial), states.data_ptr(), *states.stride()[:4])
        + (saved.data_ptr(), _at(d_states), *d_strides, _at(d_last))
        + (d_gates.data_ptr(), *d_gates.stride()[:4])
        + (_at(d_initial if need_initial else None), d_weights.data_ptr())
    )
    _run(plan, _BACKWARD, pointers, like, dims, threads)
    return Backward(d_gates, d_initial, d_weights)


def _run(
    plan: Plan,
    layout: struct.Struct,
    pointers: tuple[int, ...],
    like: Tensor,
    dims: Dims,
    threads: int,
) -> None:
    region = parallel_region() if threads > 1 else 0
    sizes = (dims.B, dims.T, dims.N, dims.D, plan.tiling.b_per_core, threads, region)
    key = (plan.kernel.path, dims.N, dims.D, plan.tiling.b_per_core, threads)
    needed = _workspace_numbers.get(key)
    if needed is None:
        needed = plan.kernel.workspace(layout.pack(*pointers, 0, *sizes))
        _workspace_numbers[key] = needed
    workspace = like.new_empty(needed)
    plan.kernel.run(layout.pack(*pointers, workspace.data_ptr(), *sizes))


_workspace_numbers: dict[tuple[str, int, int, int, int], int] = {}


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
