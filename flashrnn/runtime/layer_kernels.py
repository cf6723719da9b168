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
    B, T, _ = x.shape
    _, N, D, _ = w.shape
    if lengths is not None:
        check_lengths(lengths, T)
    cell = cell_of(name)
    S = len(cell.states)
    soon = _training_soon if save else _inference_soon
    kernel = launch.kernel_for(cell, FORWARD, x.dtype, B, T, N, D, soon)
    states = pool.empty(x, *_states(S if save else 1, B, T, N, D))
    last = x.new_empty_strided(*_last(S, B, N, D))
    saved = pool.empty(x, kernel.saved_shape, (1,)) if save else None
    x, w, r = innermost_contiguous(x), w.contiguous(), r.contiguous()
    weights, bias, before = unit_weights(cell, r, parameters), contiguous(bias), contiguous(initial)
    arguments = kernel.forward(
        None, r, bias, weights, before, states, last, saved, lengths, options_of(clip, cut, reverse)
    )
    surround.forward(kernel, arguments, x, w)
    if T == 0:
        last = torch.zeros_like(last) if initial is None else initial.clone()
    return states, last, saved


def _inference_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    surround.compile_soon(dtype, FORWARD)


def _training_soon(cell: Cell, dtype: Dtype, dims: Dims, threads: int) -> None:
    surround.compile_soon(dtype, FORWARD)
    surround.compile_soon(dtype, BACKWARD)
    kernels.compile_soon(cell, BACKWARD, dtype, dims, threads)


def inference(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The outputs h [B, T, N, D] after each step and the last states; arguments of `forward`."""
    states, last, _ = forward(*inputs, save=False)
    return states[0], last


def _states(S: int, B: int, T: int, N: int, D: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of states [S, B, T, N, D], steps outermost in memory but for S."""
    row = N * D
    return (S, B, T, N, D), (T * B * row, row, B * row, D, 1)


def _last(S: int, B: int, N: int, D: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of states [S, B, 1, N, D]."""
    row = N * D
    return (S, B, 1, N, D), (B * row, row, row, D, 1)


def training(*inputs: Any) -> tuple[Any, ...]:
    """All that `gradients` needs: arguments and results of `forward`."""
    return forward(*inputs, save=True)


def _units(x: Tensor, K: int, N: int, D: int) -> Tensor:
    """Uninitialised numbers per unit, [K, N, D], like x."""
    return x.new_empty_strided((K, N, D), (N * D, D, 1))  # in half the time of new_empty


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
    S, B, T, N, D = states.shape
    dense = declared.recurrence == DENSE
    weights = unit_weights(declared, r, parameters)
    K = 0 if weights is None else weights.shape[0]
    x, w, packed_r = innermost_contiguous(x), w.contiguous(), r.contiguous()
    d_x = torch.empty_like(x) if need_x else None  # ordered in memory as x, or autograd copies it
    d_w = torch.empty_like(w) if need_w else None
    d_r = torch.empty_like(packed_r) if need_r and dense else None
    d_bias = _units(x, len(declared.gates), N, D) if need_bias else None
    d_initial = x.new_empty_strided(*_last(S, B, N, D)) if need_initial else None
    d_weights = _units(x, K, N, D) if K else None
    d_h = None if d_h is None else innermost_contiguous(d_h)
    d_last, initial = contiguous(d_last), contiguous(initial)
    kernel = launch.kernel_for(declared, BACKWARD, x.dtype, B, T, N, D)
    arguments = kernel.backward(
        packed_r, weights, initial, states, saved, d_h, d_last, None, d_initial, d_weights,
        lengths, options_of(clip, cut, reverse),
    )  # fmt: skip
    surround.backward(kernel, arguments, x, w, K, d_x, d_w, d_r, d_bias, d_weights)
    if T == 0 and d_initial is not None:
        d_initial = torch.zeros_like(d_initial) if d_last is None else d_last.clone()
    d_parameters = None
    if d_weights is not None:
        if need_r and not dense:
            d_r = d_weights[: len(declared.recurrent)].clone()
        if need_parameters:
            d_parameters = d_weights[K - len(declared.parameters) :].clone()
    elif need_parameters:
        d_parameters = x.new_empty((0, N, D))
    return d_x, d_w, d_r, d_bias, d_parameters, d_initial


def backward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The same as an operator, which has no way to return nothing."""
    return tuple(x.new_empty(0) if d is None else d for d in gradients(x, *rest))


def inference_fake(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    states, last = _states_fake(x, w, 1, len(cell_of(rest[4]).states))
    return states[0], last


def _states_fake(x: Tensor, w: Tensor, kept: int, S: int) -> tuple[Tensor, Tensor]:
    B, T, N, D = x.shape[0], x.shape[1], w.shape[1], w.shape[2]
    every, last = _states(kept, B, T, N, D), _last(S, B, N, D)
    return x.new_empty_strided(*every), x.new_empty_strided(*last)


def training_fake(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    declared = cell_of(rest[4])
    S, dims = len(declared.states), Dims(x.shape[0], x.shape[1], w.shape[1], w.shape[2])
    saved = x.new_empty(launch.saved_shape(declared, dims, dtype_of(x.dtype)))
    return *_states_fake(x, w, S, S), saved


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
