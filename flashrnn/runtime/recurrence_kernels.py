"""What the recurrence's operators do: on tensors with values, by compiled kernels, and on fakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.options import options_of
from flashrnn.runtime import kernels, launch, surround
from flashrnn.runtime.arguments import (
    check_lengths,
    contiguous,
    innermost_contiguous,
    of_gates,
    unit_weights,
)
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.ready import (
    Backward,
    Forward,
    Ready,
    circumstances,
    last_layout,
    states_layout,
)

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_POSITIONS = launch.positions(FORWARD, "wx r bias weights initial states last saved lengths")


def forward(
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
) -> tuple[Tensor, Tensor, OptionalTensor]:
    """The states [S, B, T, N, D] after each step, the last ones, and what is saved, if it is."""
    if lengths is not None:
        check_lengths(lengths, wx.shape[1])
    cell = cell_of(name)
    wx, r, bias = innermost_contiguous(wx), r.contiguous(), contiguous(bias)
    weights, before = unit_weights(cell, r, parameters), contiguous(initial)
    key = (
        cell, wx.dtype, wx.shape, wx.stride(), weights is None, bias is None, before is None,
        lengths is None, clip, cut, reverse, save, *circumstances(),
    )  # fmt: skip
    form = _forward_forms.get(key)
    if form is None:
        soon = _training_soon if save else None
        form = Forward(cell, wx.dtype, _dims(wx), len(cell.states), soon)
        _forward_forms.keep(key, form)
    states, last, saved = form.states(), form.last(), form.saved() if save else None
    if form.ready is None:
        arguments = form.kernel.forward(
            wx, r, bias, weights, before, states, last, saved, lengths,
            options_of(clip, cut, reverse),
        )  # fmt: skip
        form.ready = Ready(form.kernel.place_workspace, form.kernel.run, arguments, _POSITIONS)
    form.ready.again(wx, r, bias, weights, before, states, last, saved, lengths)
    return states, last, saved


class _Backward(Backward):
    """What follows from the form of a backward call."""

    def __init__(self, cell: Cell, wx: Tensor, r: Tensor, weights: int) -> None:
        super().__init__(cell, r, _dims(wx), weights)
        # ordered in memory as wx, or autograd copies it
        self.gates = launch.sequence_maker(wx, (len(cell.gates), *wx.shape[3:]))


_forward_forms: Kept[tuple[object, ...], Forward] = Kept()
_backward_forms: Kept[tuple[object, ...], _Backward] = Kept()


def _dims(wx: Tensor) -> Dims:
    B, T, _, N, D = wx.shape
    return Dims(B, T, N, D)


def _training_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    kernels.compile_soon(cell, BACKWARD, dtype, dims, threads)
    surround.compile_soon(dtype, BACKWARD)


def inference(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The first two results of `forward`, whose arguments it takes."""
    states, last, _ = forward(*inputs, save=False)
    return states, last


def training(*inputs: Any) -> tuple[Any, ...]:
    """All that `gradients` needs: arguments and results of `forward`."""
    return forward(*inputs, save=True)


def gradients(
    wx: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    need: Sequence[bool],
    cell: str,
    lengths: OptionalTensor,
    clip: float,
    cut: bool,
    reverse: bool,
) -> tuple[OptionalTensor, ...]:
    """Of wx, r, bias, parameters and initial; None where nobody asks."""
    declared = cell_of(cell)
    need_wx, need_r, need_bias, need_parameters, need_initial = need
    dense = declared.recurrence == DENSE
    packed_r, initial = r.contiguous(), contiguous(initial)
    weights = unit_weights(declared, packed_r, parameters)
    d_states = None if d_states is None else innermost_contiguous(d_states)
    d_last = contiguous(d_last)
    key = (
        declared, wx.dtype, wx.shape, wx.stride(), weights is None, initial is None,
        states.stride(), None if d_states is None else d_states.stride(), d_last is None,
        lengths is None, *need, clip, cut, reverse, *circumstances(), surround.PIECE_ROWS,
    )  # fmt: skip
    form = _backward_forms.get(key)
    if form is None:
        count = 0 if weights is None else weights.shape[0]
        form = _backward_forms.keep(key, _Backward(declared, wx, packed_r, count))
    d_gates = form.gates()
    d_r = form.r() if need_r and dense else None
    d_bias = form.bias() if need_bias else None
    d_initial = form.initial() if need_initial else None
    d_weights = form.weights() if form.weight_count else None
    if form.ready is None:
        arguments = form.kernel.backward(
            packed_r, weights, initial, states, saved, d_states, d_last, d_gates, d_initial, None,
            lengths, options_of(clip, cut, reverse),
        )  # fmt: skip
        form.ready = surround.backward(
            form.kernel, arguments, None, None, form.weight_count, None, None, d_r, d_bias,
            d_weights,
        )  # fmt: skip
    form.ready.again(
        None, None, None, None, d_r, d_bias, d_weights, packed_r, weights, initial, states, saved,
        d_states, d_last, lengths, d_initial, d_gates,
    )  # fmt: skip
    if wx.shape[1] == 0 and d_initial is not None:
        d_initial = torch.zeros_like(d_initial) if d_last is None else d_last.clone()
    d_wx = of_gates(d_gates, declared.gates, declared.input) if need_wx else None
    d_r, d_parameters = form.of_weights(d_r, d_weights, need_r, need_parameters)
    return d_wx, d_r, d_bias, d_parameters, d_initial


def backward(wx: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The same as an operator, which has no way to return nothing."""
    return tuple(wx.new_empty(0) if d is None else d for d in gradients(wx, *rest))


def inference_fake(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    declared, dims = cell_of(cell), _dims(wx)
    every, last = states_layout(len(declared.states), dims), last_layout(declared, dims)
    return wx.new_empty_strided(*every), wx.new_empty_strided(*last)


def training_fake(wx: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = launch.saved_shape(cell_of(rest[4]), _dims(wx), dtype_of(wx.dtype))
    states, last = inference_fake(wx, *rest)
    return states, last, wx.new_empty(shape)


def backward_fake(
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
