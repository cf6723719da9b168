"""The recurrence as torch operators: schemas, fake implementations, autograd.

flashrnn::recurrence is what users reach. Its autograd kernel is written by hand: over a bare
autograd.Function it costs a fifth of what torch.library.register_autograd costs (6 against 28 µs).
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.options import Options, options_of
from flashrnn.reference import reference
from flashrnn.runtime import higher, kernels, launch, pool, surround
from flashrnn.runtime.arguments import (
    check_lengths,
    contiguous,
    innermost_contiguous,
    of_gates,
    unit_weights,
)
from flashrnn.runtime.registry import OPTIONS, define, plain

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_INPUTS = (
    "Tensor wx, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell, " + OPTIONS
)


def _forward(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    name: str,
    lengths: OptionalTensor,
    clip: float,
    cut: bool,
    reverse: bool,
    *,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_lengths(lengths, wx.shape[1])
    cell = cell_of(name)
    wx = innermost_contiguous(wx)
    B, T, _, N, D = wx.shape
    S = len(cell.states)
    states = pool.empty(wx, (S, T, B, N, D)).transpose(1, 2)  # what a step writes lies together
    last = wx.new_empty((S, B, 1, N, D))
    soon = _training_soon if save else None
    kernel = launch.kernel_for(cell, FORWARD, wx.dtype, B, T, N, D, soon)
    saved = pool.empty(wx, kernel.saved_shape if save else (0,))
    r, bias, initial = r.contiguous(), contiguous(bias), contiguous(initial)
    weights, kept = unit_weights(cell, r, parameters), saved if save else None
    options = options_of(clip, cut, reverse)
    kernel.run(kernel.forward(wx, r, bias, weights, initial, states, last, kept, lengths, options))
    return states, last, saved


def _training_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    kernels.compile_soon(cell, BACKWARD, dtype, dims, threads)
    surround.compile_soon(dtype, BACKWARD)


def _recurrence_cpu(*inputs: Any) -> tuple[Tensor, Tensor]:
    states, last, _ = _forward(*inputs, save=False)
    return states, last


def _training_cpu(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=True)


def _backward_cpu(
    wx: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    need: list[bool],
    cell: str,
    lengths: OptionalTensor,
    clip: float,
    cut: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    need_wx, need_r, need_bias, need_parameters, need_initial = need
    S, B, T, N, D = states.shape
    dense = declared.recurrence == DENSE
    weights, initial = unit_weights(declared, r, parameters), contiguous(initial)
    K = 0 if weights is None else weights.shape[0]
    none = r.new_empty(0)
    gates = len(declared.gates)
    # ordered in memory as wx, or autograd copies it
    d_gates = launch.empty_sequence(wx, (), (gates, N, D), pool.empty)
    d_weights, each = r.new_empty((K, N, D)), r.new_empty((B, K, N, D))
    d_initial = r.new_empty((S, B, 1, N, D)) if need_initial else None
    d_r = r.new_empty(r.shape) if need_r and dense else None
    d_bias = r.new_empty((gates, N, D)) if need_bias else None
    kernel = launch.kernel_for(declared, BACKWARD, states.dtype, B, T, N, D)
    packed_r, d_last = r.contiguous(), contiguous(d_last)
    d_states = None if d_states is None else innermost_contiguous(d_states)
    options = options_of(clip, cut, reverse)
    arguments = kernel.backward(
        packed_r, weights, initial, states, saved, d_states, d_last, d_gates, d_initial, each,
        lengths, options,
    )  # fmt: skip
    surround.backward(kernel, arguments, None, None, K, None, None, d_r, d_bias, d_weights)
    if T == 0 and d_initial is not None:
        d_initial = torch.zeros_like(d_initial) if d_last is None else d_last.clone()
    if need_r and not dense:
        d_r = d_weights[: len(declared.recurrent)].clone()
    d_parameters = d_weights[K - len(declared.parameters) :].clone() if need_parameters else none
    d_wx = of_gates(d_gates, declared.gates, declared.input) if need_wx else none
    return tuple(none if d is None else d for d in (d_wx, d_r, d_bias, d_parameters, d_initial))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        run = plain(torch.ops.flashrnn.recurrence_training.default, _training_cpu)
        states, last, saved = run(wx, r, bias, parameters, initial, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(wx, r, bias, parameters, initial, states, saved, rest[1])
        ctx.rest = rest
        return states, last

    @staticmethod
    def backward(
        ctx: Any, d_states: OptionalTensor, d_last: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        *inputs, states, saved, lengths = ctx.saved_tensors
        wx, r, _, parameters, initial = inputs
        need = list(ctx.needs_input_grad[:5])
        cell, _, *options = ctx.rest
        run = plain(torch.ops.flashrnn.recurrence_backward.default, _backward_cpu)

        def fused() -> tuple[OptionalTensor, ...]:
            grads = run(
                wx, r, parameters, initial, states, saved, d_states, d_last, need, cell,
                lengths, *options,
            )  # fmt: skip
            return tuple(g if n else None for g, n in zip(grads, need, strict=True))

        def slow(
            wx: Tensor,
            r: Tensor,
            bias: OptionalTensor,
            parameters: OptionalTensor,
            initial: OptionalTensor,
        ) -> tuple[Tensor, Tensor]:
            return reference(wx, r, bias, initial, cell, parameters, lengths, Options(*options))

        grads = higher.gradients(fused, slow, inputs, (d_states, d_last))
        return (*grads, *(None for _ in ctx.rest))


def _recurrence_fake(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    B, T, _, N, D = wx.shape
    S = len(cell_of(cell).states)
    return wx.new_empty((S, T, B, N, D)).transpose(1, 2), wx.new_empty((S, B, 1, N, D))


def _training_fake(wx: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, N, D = wx.shape
    shape = launch.saved_shape(cell_of(rest[4]), Dims(B, T, N, D), dtype_of(wx.dtype))
    states, last = _recurrence_fake(wx, *rest)
    return states, last, wx.new_empty(shape)


def _backward_fake(
    wx: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    need: list[bool],
    cell: str,
    *options: Any,
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    S, B, _, N, D = states.shape
    gates = launch.empty_sequence(wx, (), (len(declared.gates), N, D))
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
    _Recurrence.apply,
)
define(
    "recurrence_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    _training_cpu,
    _training_fake,
)
define(
    "recurrence_backward",
    "(Tensor wx, Tensor r, Tensor? parameters, Tensor? initial, Tensor states, Tensor saved, "
    f"Tensor? d_states, Tensor? d_last, bool[] need, str cell, {OPTIONS}) -> "
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
    lengths: OptionalTensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """flashrnn::recurrence on checked tensors: (states [S, B, T, N, D], last [S, B, 1, N, D])."""
    run = plain(torch.ops.flashrnn.recurrence.default, _recurrence_cpu, _Recurrence.apply)
    states, last = run(
        wx, r, bias, parameters, initial, cell.key, lengths,
        options.gradient_clip, options.gradient_cut, options.reverse,
    )  # fmt: skip
    return states, last
