"""What the layer's operators do: on tensors with values, by compiled kernels, and on fake ones.

csrc/cpu/layer_*.hpp work on some hundred rows at a time, so neither the input products nor the gate
gradients ever exist for the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.options import options_of
from flashrnn.runtime import kernels, launch, pool, surround
from flashrnn.runtime.arguments import check_lengths, contiguous, innermost_contiguous, unit_weights
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.ready import Backward, Forward, circumstances, last_layout, states_layout

Tensor = torch.Tensor
OptionalTensor = Tensor | None


def forward(
    x: Tensor,
    w: Tensor,
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
    """The states [S, B, T, N, D] after each step, the last ones, and what is saved.

    Without save, h alone of the states, and None.
    """
    if lengths is not None:
        check_lengths(lengths, x.shape[1])
    cell = cell_of(name)
    x, w, r = innermost_contiguous(x), w.contiguous(), r.contiguous()
    weights, bias, before = unit_weights(cell, r, parameters), contiguous(bias), contiguous(initial)
    key = (
        cell, x.dtype, x.shape, x.stride(), w.shape, weights is None, bias is None, before is None,
        lengths is None, clip, cut, reverse, save, *circumstances(), surround.PIECE_ROWS,
    )  # fmt: skip
    form = _forward_forms.get(key)
    if form is None:
        soon, kept = (training_soon, len(cell.states)) if save else (inference_soon, 1)
        form = _forward_forms.keep(key, Forward(cell, x.dtype, _dims(x, w), kept, soon))
    states, last, saved = form.states(), form.last(), form.saved() if save else None
    if form.ready is None:
        arguments = form.kernel.forward(
            None, r, bias, weights, before, states, last, saved, lengths,
            options_of(clip, cut, reverse),
        )  # fmt: skip
        form.ready = surround.forward(form.kernel, arguments, x, w)
    form.ready.again(x, w, r, bias, weights, before, states, last, saved, lengths)
    if x.shape[1] == 0:
        last = torch.zeros_like(last) if initial is None else initial.clone()
    return states, last, saved


class _Backward(Backward):
    """What follows from the form of a backward call."""

    def __init__(self, cell: Cell, x: Tensor, w: Tensor, r: Tensor, weights: int) -> None:
        super().__init__(cell, r, _dims(x, w), weights)
        # ordered in memory as x, or autograd copies it
        self.x = pool.maker(x.shape, torch.empty_like(x).stride(), x.dtype)
        self.w = pool.maker(w.shape, None, w.dtype)


_forward_forms: Kept[tuple[object, ...], Forward] = Kept()
_backward_forms: Kept[tuple[object, ...], _Backward] = Kept()


def _dims(x: Tensor, w: Tensor) -> Dims:
    return Dims(x.shape[0], x.shape[1], w.shape[1], w.shape[2])


def inference_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    surround.compile_soon(dtype, FORWARD)


def training_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    surround.compile_soon(dtype, FORWARD)
    surround.compile_soon(dtype, BACKWARD)
    kernels.compile_soon(cell, BACKWARD, dtype, dims, threads)


def inference(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The outputs h [B, T, N, D] after each step and the last states; arguments of `forward`."""
    states, last, _ = forward(*inputs, save=False)
    return states[0], last


def training(*inputs: Any) -> tuple[Any, ...]:
    """All that `gradients` needs: arguments and results of `forward`."""
    return forward(*inputs, save=True)


def gradients(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_h: OptionalTensor,
    d_last: OptionalTensor,
    need: Sequence[bool],
    cell: str,
    lengths: OptionalTensor,
    clip: float,
    cut: bool,
    reverse: bool,
) -> tuple[OptionalTensor, ...]:
    """Of x, w, r, bias, parameters and initial; None where nobody asks."""
    declared = cell_of(cell)
    need_x, need_w, need_r, need_bias, need_parameters, need_initial = need
    dense = declared.recurrence == DENSE
    x, w, packed_r = innermost_contiguous(x), w.contiguous(), r.contiguous()
    weights, initial = unit_weights(declared, r, parameters), contiguous(initial)
    d_h = None if d_h is None else innermost_contiguous(d_h)
    d_last = contiguous(d_last)
    key = (
        declared, x.dtype, x.shape, x.stride(), w.shape, weights is None, initial is None,
        states.stride(), None if d_h is None else d_h.stride(), d_last is None, lengths is None,
        *need, clip, cut, reverse, *circumstances(), surround.PIECE_ROWS,
    )  # fmt: skip
    form = _backward_forms.get(key)
    if form is None:
        count = 0 if weights is None else weights.shape[0]
        form = _backward_forms.keep(key, _Backward(declared, x, w, packed_r, count))
    d_x = form.x() if need_x else None
    d_w = form.w() if need_w else None
    d_r = form.r() if need_r and dense else None
    d_bias = form.bias() if need_bias else None
    d_initial = form.initial() if need_initial else None
    d_weights = form.weights() if form.weight_count else None
    if form.ready is None:
        arguments = form.kernel.backward(
            packed_r, weights, initial, states, saved, d_h, d_last, None, d_initial, None,
            lengths, options_of(clip, cut, reverse),
        )  # fmt: skip
        form.ready = surround.backward(
            form.kernel, arguments, x, w, form.weight_count, d_x, d_w, d_r, d_bias, d_weights
        )
    form.ready.again(
        x, w, d_x, d_w, d_r, d_bias, d_weights, packed_r, weights, initial, states, saved, d_h,
        d_last, lengths, d_initial, None,
    )  # fmt: skip
    if x.shape[1] == 0 and d_initial is not None:
        d_initial = torch.zeros_like(d_initial) if d_last is None else d_last.clone()
    d_r, d_parameters = form.of_weights(d_r, d_weights, need_r, need_parameters)
    return d_x, d_w, d_r, d_bias, d_parameters, d_initial


def backward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The same as an operator, which has no way to return nothing."""
    return tuple(x.new_empty(0) if d is None else d for d in gradients(x, *rest))


def inference_fake(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    states, last = _states_fake(x, w, 1, cell_of(rest[4]))
    return states[0], last


def _states_fake(x: Tensor, w: Tensor, kept: int, cell: Cell) -> tuple[Tensor, Tensor]:
    every, last = states_layout(kept, _dims(x, w)), last_layout(cell, _dims(x, w))
    return x.new_empty_strided(*every), x.new_empty_strided(*last)


def training_fake(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    declared = cell_of(rest[4])
    saved = x.new_empty(launch.saved_shape(declared, _dims(x, w), dtype_of(x.dtype)))
    return *_states_fake(x, w, len(declared.states), declared), saved


def backward_fake(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_h: OptionalTensor,
    d_last: OptionalTensor,
    need: list[bool],
    cell: str,
    *options: Any,
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    S, B, _, N, D = states.shape
    d_x = torch.empty_like(innermost_contiguous(x)) if need[0] else x.new_empty(0)
    gates, parameter_count = len(declared.gates), len(declared.parameters)
    shapes = (w.shape, r.shape, (gates, N, D), (parameter_count, N, D), (S, B, 1, N, D))
    rest = (x.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True))
    return (d_x, *rest)
