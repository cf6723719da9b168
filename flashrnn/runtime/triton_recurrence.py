"""The recurrence by Triton's kernels as torch operators: schemas, fake implementations, autograd.

flashrnn::triton_recurrence has the arguments and results of flashrnn::recurrence, for CUDA
tensors, and for CPU tensors where Triton's interpreter runs them.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.options import Options
from flashrnn.reference import reference
from flashrnn.runtime import higher
from flashrnn.runtime import triton_launch as launch
from flashrnn.runtime.arguments import check_lengths, of_gates, unit_weights
from flashrnn.runtime.launch import empty_sequence
from flashrnn.runtime.registry import OPTIONS, define, plain
from flashrnn.runtime.triton_kernels import plan_for

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_DEVICES = ("CPU", "CUDA")
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
    B, T, _, N, D = wx.shape
    S = len(cell.states)
    states = empty_sequence(wx, (S,), (N, D))
    if lengths is not None:
        states.zero_()
    initial = _initial(initial, wx, S)
    last = torch.empty_like(initial)
    saved = wx.new_empty(launch.saved_shape(cell, states) if save else (0,))
    if B == 0 or T == 0:
        return states, last.copy_(initial), saved
    bias = wx.new_zeros((len(cell.gates), N, D)) if bias is None else bias
    launch.forward(
        plan_for(cell, TRAINING if save else INFERENCE, wx, Dims(B, T, N, D)), cell, wx, r, bias,
        unit_weights(cell, r, parameters), initial, states, last, saved if save else None,
        lengths, Options(clip, cut, reverse),
    )  # fmt: skip
    return states, last, saved


def _initial(initial: OptionalTensor, like: Tensor, S: int) -> Tensor:
    B, _, _, N, D = like.shape
    return like.new_zeros((S, B, 1, N, D)) if initial is None else initial.contiguous()


def _recurrence(*inputs: Any) -> tuple[Tensor, Tensor]:
    states, last, _ = _forward(*inputs, save=False)
    return states, last


def _training(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=True)


def _backward(
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    need: list[bool],
    name: str,
    lengths: OptionalTensor,
    clip: float,
    cut: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    cell = cell_of(name)
    S, B, T, N, D = states.shape
    dense, G = cell.recurrence == DENSE, len(cell.gates)
    initial = _initial(initial, states[0].unsqueeze(2), S)
    d_gates = empty_sequence(states[0], (), (G, N, D))
    if lengths is not None:
        d_gates.zero_()
    weights, options = unit_weights(cell, r, parameters), Options(clip, cut, reverse)
    K = 0 if weights is None else weights.shape[0]
    if B == 0 or T == 0:
        d_initial = torch.zeros_like(initial) if d_last is None else d_last.clone()
        d_weights: OptionalTensor = r.new_zeros((K, N, D))
    else:
        d_initial = torch.empty_like(initial)
        d_weights = launch.backward(
            plan_for(cell, BACKWARD, states, Dims(B, T, N, D)), cell, r, weights, initial, states,
            saved, d_states, d_last, d_gates, d_initial, lengths, options,
        )  # fmt: skip
    none = r.new_empty(0)
    need_wx, need_r, need_bias, need_parameters, need_initial = need
    d_wx = of_gates(d_gates, cell.gates, cell.input) if need_wx else none
    d_r = d_parameters = none
    if need_r and dense:
        d_r = _d_recurrent(cell, d_gates, states[0], initial[0, :, 0], lengths, reverse)
    elif need_r and d_weights is not None:
        d_r = d_weights[: len(cell.recurrent)].to(r.dtype, copy=True)
    if need_parameters and d_weights is not None:
        d_parameters = d_weights[K - len(cell.parameters) :].to(r.dtype, copy=True)
    d_bias = d_gates.sum((0, 1)) if need_bias else none
    return d_wx, d_r, d_bias, d_parameters, d_initial if need_initial else none


def _d_recurrent(
    cell: Cell, d_gates: Tensor, h: Tensor, first: Tensor, lengths: OptionalTensor, reverse: bool
) -> Tensor:
    """dR [G_r, N, D, P]: the gates' gradients [B, T, G, N, D] times the h before each step.

    h [B, T, N, D] after each step, zero past the end of a row, where d_gates is zero too; first
    [B, N, D], before the first step.
    """
    B, T, _, N, D = d_gates.shape
    gates = of_gates(d_gates, cell.gates, cell.product_gates)
    if B == 0 or T == 0 or not cell.product_gates:
        return h.new_zeros((len(cell.product_gates), N, D, D))
    if not reverse:
        begins, others, before = gates[:, 0], gates[:, 1:], h[:, :-1]
    else:
        rows = torch.arange(B, device=h.device)
        ends = torch.full((B,), T) if lengths is None else lengths
        begins = gates[rows, (ends.to(h.device) - 1).clamp(min=0)]
        others, before = gates[:, :-1], h[:, 1:]
    total = torch.einsum("bgnd,bnp->gndp", begins, first)
    if T > 1:
        total = total + torch.einsum("btgnd,btnp->gndp", others, before)
    return total.contiguous()


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
        run = plain(torch.ops.flashrnn.triton_training.default, _training)
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
        _, r, _, parameters, initial = inputs
        need = list(ctx.needs_input_grad[:5])
        cell, _, *options = ctx.rest
        run = plain(torch.ops.flashrnn.triton_backward.default, _backward)

        def fused() -> tuple[OptionalTensor, ...]:
            grads = run(
                r, parameters, initial, states, saved, d_states, d_last, need, cell, lengths,
                *options,
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
    B, _, _, N, D = wx.shape
    S = len(cell_of(cell).states)
    return empty_sequence(wx, (S,), (N, D)), wx.new_empty((S, B, 1, N, D))


def _training_fake(wx: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    states, last = _recurrence_fake(wx, *rest)
    return states, last, wx.new_empty(launch.saved_shape(cell_of(rest[4]), states))


def _backward_fake(
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
    gates = empty_sequence(states[0], (), (len(declared.gates), N, D))
    d_wx = of_gates(gates, declared.gates, declared.input) if need[0] else r.new_empty(0)
    shapes = (
        r.shape,
        (len(declared.gates), N, D),
        (len(declared.parameters), N, D),
        (S, B, 1, N, D),
    )
    rest = (r.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True))
    return (d_wx, *rest)


define(
    "triton_recurrence",
    f"({_INPUTS}) -> (Tensor states, Tensor last)",
    _recurrence,
    _recurrence_fake,
    _Recurrence,
    devices=_DEVICES,
)
define(
    "triton_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    _training,
    _training_fake,
    devices=_DEVICES,
)
define(
    "triton_backward",
    "(Tensor r, Tensor? parameters, Tensor? initial, Tensor states, Tensor saved, "
    f"Tensor? d_states, Tensor? d_last, bool[] need, str cell, {OPTIONS}) -> "
    "(Tensor d_wx, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
    _backward,
    _backward_fake,
    devices=_DEVICES,
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
    """flashrnn::triton_recurrence on checked tensors: (states [S, B, T, N, D], last)."""
    run = plain(torch.ops.flashrnn.triton_recurrence.default, _recurrence, _Recurrence)
    states, last = run(
        wx, r, bias, parameters, initial, cell.key, lengths,
        options.gradient_clip, options.gradient_cut, options.reverse,
    )  # fmt: skip
    return states, last
