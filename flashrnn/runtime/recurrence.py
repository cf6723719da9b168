"""The recurrence as torch operators: schemas, fake implementations, autograd.

flashrnn::recurrence is what users reach. Its autograd kernel is written by hand: over a bare
autograd.Function it costs a fifth of what torch.library.register_autograd costs (6 against 28 µs).
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.runtime import launch
from flashrnn.runtime.arguments import (
    contiguous,
    innermost_contiguous,
    of_gates,
    recurrent_weight_gradient,
    unit_weights,
)
from flashrnn.runtime.registry import define, refuse_second_derivative

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_INPUTS = "Tensor wx, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell"


def _forward(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    name: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cell = cell_of(name)
    wx = innermost_contiguous(wx)
    B, T, _, N, D = wx.shape
    dims, S = Dims(B, T, N, D), len(cell.states)
    states = launch.empty_sequence(wx, (S,), (N, D))
    last = wx.new_empty((S, B, 1, N, D))
    saved = wx.new_empty(launch.saved_shape(cell, dims, dtype_of(wx.dtype)) if save else 0)
    kernel = launch.kernel_for(cell, FORWARD, wx, dims)
    r, bias, initial = r.contiguous(), contiguous(bias), contiguous(initial)
    weights = unit_weights(cell, r, parameters)
    kernel.run(kernel.forward(wx, r, bias, weights, initial, states, last, saved if save else None))
    return states, last, saved


def _recurrence_cpu(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor]:
    states, last, _ = _forward(wx, r, bias, parameters, initial, cell, save=False)
    return states, last


def _training_cpu(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(wx, r, bias, parameters, initial, cell, save=True)


def _backward_cpu(
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    cell: str,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    declared = cell_of(cell)
    need_wx, need_r, need_bias, need_parameters, need_initial = need
    S, B, T, N, D = states.shape
    weights, initial = unit_weights(declared, r, parameters), contiguous(initial)
    d_gates = launch.empty_sequence(states[0], (), (len(declared.gates), N, D))
    d_weights = r.new_empty((B, 0 if weights is None else weights.shape[0], N, D))
    none = r.new_empty(0)
    d_initial = r.new_empty((S, B, 1, N, D)) if need_initial else none
    kernel = launch.kernel_for(declared, BACKWARD, states, Dims(B, T, N, D))
    packed_r, d_last = r.contiguous(), contiguous(d_last)
    d_states = None if d_states is None else innermost_contiguous(d_states)
    wanted = d_initial if need_initial else None
    kernel.run(
        kernel.backward(
            packed_r, weights, initial, states, saved, d_states, d_last, d_gates, wanted, d_weights
        )
    )
    d_r = d_bias = d_parameters = none
    if need_r and declared.recurrence == DENSE:
        d_recurrent = of_gates(d_gates, declared.gates, declared.recurrent)
        d_r = recurrent_weight_gradient(d_recurrent, states[0], initial)
    elif need_r:
        d_r = d_weights[:, : len(declared.recurrent)].sum(0)
    if need_bias:
        d_bias = d_gates.sum((0, 1))
    if need_parameters:
        d_parameters = d_weights[:, -len(declared.parameters) :].sum(0)
    d_wx = of_gates(d_gates, declared.gates, declared.input) if need_wx else none
    return d_wx, d_r, d_bias, d_parameters, d_initial


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        cell: str,
    ) -> tuple[Tensor, Tensor]:
        states, last, saved = torch.ops.flashrnn.recurrence_training(
            wx, r, bias, parameters, initial, cell
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(r, parameters, initial, states, saved)
        ctx.cell = cell
        return states, last

    @staticmethod
    def backward(
        ctx: Any, d_states: OptionalTensor, d_last: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        refuse_second_derivative()
        need = list(ctx.needs_input_grad[:5])
        grads = torch.ops.flashrnn.recurrence_backward(
            *ctx.saved_tensors, d_states, d_last, ctx.cell, need
        )
        return (*(g if n else None for g, n in zip(grads, need, strict=True)), None)


def _recurrence_fake(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor]:
    B, _, _, N, D = wx.shape
    S = len(cell_of(cell).states)
    return launch.empty_sequence(wx, (S,), (N, D)), wx.new_empty((S, B, 1, N, D))


def _training_fake(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, N, D = wx.shape
    shape = launch.saved_shape(cell_of(cell), Dims(B, T, N, D), dtype_of(wx.dtype))
    return (*_recurrence_fake(wx, r, bias, parameters, initial, cell), wx.new_empty(shape))


def _backward_fake(
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    cell: str,
    need: list[bool],
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    S, B, _, N, D = states.shape
    gates = launch.empty_sequence(states[0], (), (len(declared.gates), N, D))
    d_wx = of_gates(gates, declared.gates, declared.input) if need[0] else r.new_empty(0)
    gate_count, parameter_count = len(declared.gates), len(declared.parameters)
    shapes = (r.shape, (gate_count, N, D), (parameter_count, N, D), (S, B, 1, N, D))
    rest = (r.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True))
    return (d_wx, *rest)


define(
    "recurrence",
    f"({_INPUTS}) -> (Tensor states, Tensor last)",
    _recurrence_cpu,
    _recurrence_fake,
    _Recurrence,
)
define(
    "recurrence_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    _training_cpu,
    _training_fake,
)
define(
    "recurrence_backward",
    "(Tensor r, Tensor? parameters, Tensor? initial, Tensor states, Tensor saved, "
    "Tensor? d_states, Tensor? d_last, str cell, bool[] need) -> "
    "(Tensor d_wx, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
    _backward_cpu,
    _backward_fake,
)


def recurrence(
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
) -> tuple[Tensor, Tensor]:
    """flashrnn::recurrence on checked tensors: (states [S, B, T, N, D], last [S, B, 1, N, D])."""
    states, last = torch.ops.flashrnn.recurrence.default(wx, r, bias, parameters, initial, cell.key)
    return states, last
