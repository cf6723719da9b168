"""A whole layer as one operator: the input product, the recurrence and every gradient.

csrc/cpu/layer.hpp works on some hundred rows at a time, so neither the input products nor the gate
gradients ever exist for the whole sequence.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD, LAYER
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.runtime import launch, pool, surround
from flashrnn.runtime.arguments import (
    contiguous,
    innermost_contiguous,
    unit_weights,
)
from flashrnn.runtime.registry import define, plain, refuse_second_derivative
from flashrnn.tiling.cpu import owns_input

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_INPUTS = (
    "Tensor x, Tensor w, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell"
)


def _forward(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    name: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cell = cell_of(name)
    B, T, N, D = x.shape[0], x.shape[1], w.shape[1], w.shape[2]
    dims, S, dtype = Dims(B, T, N, D), len(cell.states), dtype_of(x.dtype)
    # slot 0 holds the initial states, so that the states before every step are one view
    empty = pool.empty if save else _empty
    states = empty((S if save else 1, T + 1, B, N, D), dtype)
    if initial is None:
        states[:, 0].zero_()
    else:
        states[:, 0] = initial[: states.shape[0], :, 0]
    last = x.new_empty((S, B, 1, N, D))
    saved = empty(launch.saved_shape(cell, dims, dtype) if save else (0,), dtype)
    r, bias, weights = r.contiguous(), contiguous(bias), unit_weights(cell, r, parameters)
    before, after = contiguous(initial), states[:, 1:].transpose(1, 2)
    x, w = innermost_contiguous(x), w.contiguous()
    owner = owns_input(dims)
    kernel = launch.kernel_for(cell, LAYER if owner else FORWARD, x, dims)
    kept = saved if save else None
    arguments = kernel.forward(x, r, bias, weights, before, after, last, kept, w)
    if owner:
        kernel.run(arguments)
    else:
        surround.forward(kernel, arguments, x, w, kept)
        if T == 0:
            last = torch.zeros_like(last) if initial is None else initial.clone()
    return states, last, saved


def _empty(shape: tuple[int, ...], dtype: Dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype.torch)


def _layer_cpu(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor]:
    states, last, _ = _forward(x, w, r, bias, parameters, initial, cell, save=False)
    return states[0, 1:].transpose(0, 1), last


def _training_cpu(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, w, r, bias, parameters, initial, cell, save=True)


def _backward_cpu(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_h: OptionalTensor,
    d_last: OptionalTensor,
    cell: str,
    need: list[bool],
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    need_x, need_w, need_r, need_bias, need_parameters, need_initial = need
    S, _, B, N, D = states.shape
    T, I = x.shape[1], x.shape[2]
    dims, weights = Dims(B, T, N, D), unit_weights(declared, r, parameters)
    K = 0 if weights is None else weights.shape[0]
    dense = declared.recurrence == DENSE
    none = x.new_empty(0)
    d_x = x.new_empty((T, B, I)).transpose(0, 1) if need_x else None
    d_w = torch.empty_like(w, memory_format=torch.contiguous_format) if need_w else None
    d_r = torch.empty_like(r, memory_format=torch.contiguous_format) if need_r and dense else None
    d_bias = x.new_empty((len(declared.gates), N, D)) if need_bias else None
    d_weights = x.new_empty((K, N, D))
    d_initial = x.new_empty((S, B, 1, N, D)) if need_initial else None
    x, w, r = innermost_contiguous(x), w.contiguous(), r.contiguous()
    d_h = None if d_h is None else innermost_contiguous(d_h)[None]
    d_last, after = contiguous(d_last), states[:, 1:].transpose(1, 2)
    kernel = launch.kernel_for(declared, BACKWARD, x, dims)
    arguments = kernel.backward(
        r, weights, None, after, saved, d_h, d_last, None, d_initial, d_weights, before=True
    )
    surround.backward(
        kernel, arguments, declared, x, w, states[0, :T], saved, K, d_x, d_w, d_r, d_bias, d_weights
    )
    if T == 0 and d_initial is not None:
        d_initial = torch.zeros_like(d_initial) if d_last is None else d_last.clone()
    if need_r and not dense:
        d_r = d_weights[: len(declared.recurrent)].clone()
    d_parameters = d_weights[K - len(declared.parameters) :].clone() if need_parameters else none
    return tuple(none if d is None else d for d in (d_x, d_w, d_r, d_bias, d_parameters, d_initial))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        cell: str,
    ) -> tuple[Tensor, Tensor]:
        run = plain(torch.ops.flashrnn.layer_training.default, _training_cpu)
        states, last, saved = run(x, w, r, bias, parameters, initial, cell)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, r, parameters, states, saved)
        ctx.cell = cell
        return states[0, 1:].transpose(0, 1), last

    @staticmethod
    def backward(
        ctx: Any, d_h: OptionalTensor, d_last: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        refuse_second_derivative()
        need = list(ctx.needs_input_grad[:6])
        run = plain(torch.ops.flashrnn.layer_backward.default, _backward_cpu)
        grads = run(*ctx.saved_tensors, d_h, d_last, ctx.cell, need)
        return (*(g if n else None for g, n in zip(grads, need, strict=True)), None)


def _states_fake(x: Tensor, w: Tensor, states: int) -> Tensor:
    B, T, _ = x.shape
    return x.new_empty((states, T + 1, B, w.shape[1], w.shape[2]))


def _layer_fake(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor]:
    last = x.new_empty((len(cell_of(cell).states), x.shape[0], 1, w.shape[1], w.shape[2]))
    return _states_fake(x, w, 1)[0, 1:].transpose(0, 1), last


def _training_fake(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
) -> tuple[Tensor, Tensor, Tensor]:
    declared = cell_of(cell)
    dims = Dims(x.shape[0], x.shape[1], w.shape[1], w.shape[2])
    saved = x.new_empty(launch.saved_shape(declared, dims, dtype_of(x.dtype)))
    _, last = _layer_fake(x, w, r, bias, parameters, initial, cell)
    return _states_fake(x, w, len(declared.states)), last, saved


def _backward_fake(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    parameters: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_h: OptionalTensor,
    d_last: OptionalTensor,
    cell: str,
    need: list[bool],
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    S, _, B, N, D = states.shape
    T, I = x.shape[1], x.shape[2]
    d_x = x.new_empty((T, B, I)).transpose(0, 1) if need[0] else x.new_empty(0)
    gates, parameter_count = len(declared.gates), len(declared.parameters)
    shapes = (w.shape, r.shape, (gates, N, D), (parameter_count, N, D), (S, B, 1, N, D))
    rest = (x.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True))
    return (d_x, *rest)


define("layer", f"({_INPUTS}) -> (Tensor h, Tensor last)", _layer_cpu, _layer_fake, _Layer)
define(
    "layer_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    _training_cpu,
    _training_fake,
)
define(
    "layer_backward",
    "(Tensor x, Tensor w, Tensor r, Tensor? parameters, Tensor states, Tensor saved, "
    "Tensor? d_h, Tensor? d_last, str cell, bool[] need) -> (Tensor d_x, Tensor d_w, Tensor d_r, "
    "Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
    _backward_cpu,
    _backward_fake,
)


def layer(
    cell: Cell,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
) -> tuple[Tensor, Tensor]:
    """flashrnn::layer on checked tensors: (h [B, T, N, D], last [S, B, 1, N, D])."""
    run = plain(torch.ops.flashrnn.layer.default, _layer_cpu, _Layer)
    h, last = run(x, w, r, bias, parameters, initial, cell.key)
    return h, last
