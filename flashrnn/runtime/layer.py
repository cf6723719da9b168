"""A whole layer as one operator: the input product, the recurrence and every gradient.

Working on some hundred rows at a time keeps the input products and the gate gradients in cache
between the library's matrix products and the recurrence; neither ever exists for the whole
sequence.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD, LAYER
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.runtime import launch
from flashrnn.runtime.arguments import (
    contiguous,
    innermost_contiguous,
    of_gates,
    outer,
    unit_weights,
)
from flashrnn.runtime.registry import define, refuse_second_derivative
from flashrnn.runtime.scratch import scratch
from flashrnn.runtime.sums import Sums
from flashrnn.tiling.cpu import owns_input

Tensor = torch.Tensor
OptionalTensor = Tensor | None

# Rows (steps times batch) of one piece: enough for a matrix product to run at its full speed, few
# enough for their gates to stay in cache.
PIECE_ROWS = 2048

_INPUTS = (
    "Tensor x, Tensor w, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell"
)


def _pieces(dims: Dims) -> list[tuple[int, int]]:
    """The sequence in pieces [start, end) of about PIECE_ROWS rows."""
    count = min(dims.T, max(1, round(dims.T * dims.B / PIECE_ROWS)))
    return [(k * dims.T // count, (k + 1) * dims.T // count) for k in range(count)]


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
    B, T, I = x.shape
    G, N, D, _ = w.shape
    dims, S, dtype = Dims(B, T, N, D), len(cell.states), dtype_of(x.dtype)
    # slot 0 holds the initial states, so that the states before every step are one view
    states = x.new_empty((S if save else 1, T + 1, B, N, D))
    if initial is None:
        states[:, 0].zero_()
    else:
        states[:, 0] = initial[: states.shape[0], :, 0]
    last = x.new_empty((S, B, 1, N, D))
    saved = x.new_empty(launch.saved_shape(cell, dims, dtype)) if save else x.new_empty(0)
    r, bias, weights = r.contiguous(), contiguous(bias), unit_weights(cell, r, parameters)
    before, after = contiguous(initial), states[:, 1:].transpose(1, 2)
    if owns_input(dims):
        launch.kernel_for(cell, LAYER, x, dims).forward(
            innermost_contiguous(x),
            r,
            bias,
            weights,
            before,
            after,
            last,
            saved if save else None,
            w.contiguous(),
        )
        return states, last, saved
    kernel = launch.kernel_for(cell, FORWARD, x, dims)
    w_t, x_rows = w.reshape(G * N * D, I).t(), x.transpose(0, 1)
    for start, end in _pieces(dims):
        rows = (end - start) * B
        products = scratch("gates", (rows, G * N * D), x.dtype)
        torch.mm(x_rows[start:end].reshape(rows, I), w_t, out=products)
        kernel.forward(
            products.view(end - start, B, G, N, D).transpose(0, 1),
            r,
            bias,
            weights,
            before,
            after[:, :, start:end],
            last,
            saved[start:end] if save else None,
        )
        before = last
    if T == 0:
        last = torch.zeros_like(last) if initial is None else initial.clone()
    return states, last, saved


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
    T, G, I = x.shape[1], len(declared.gates), x.shape[2]
    dims, weights = Dims(B, T, N, D), unit_weights(declared, r, parameters)
    K = 0 if weights is None else weights.shape[0]
    none = x.new_empty(0)
    d_x = x.new_empty((T, B, I)) if need_x else none
    w_rows, x_rows = w.reshape(-1, I), x.transpose(0, 1)
    sums = Sums()
    carried = x.new_empty((S, B, 1, N, D))
    d_h = d_h.contiguous() if d_h is not None and d_h.stride(-1) != 1 else d_h
    kernel, r = launch.kernel_for(declared, BACKWARD, x, dims), r.contiguous()
    after = contiguous(d_last)
    for start, end in reversed(_pieces(dims)):
        rows = (end - start) * B
        gates = scratch("gates", (end - start, B, G, N, D), x.dtype)
        d_gates = gates.transpose(0, 1)
        d_weights = x.new_empty((B, K, N, D))
        kernel.backward(
            r,
            weights,
            states[:, start].unsqueeze(2).contiguous(),
            states[:, start + 1 : end + 1].transpose(1, 2),
            saved[start:end],
            None if d_h is None else d_h[None, :, start:end],
            after,
            d_gates,
            carried if need_initial or start > 0 else None,
            d_weights,
        )
        after = carried
        d_input = of_gates(d_gates, declared.gates, declared.input).transpose(0, 1)
        d_rows = d_input.reshape(rows, w_rows.shape[0])
        if need_x:
            torch.mm(d_rows, w_rows, out=d_x[start:end].view(rows, I))
        if need_w:
            sums.add_product("w", d_rows, x_rows[start:end].reshape(rows, I))
        if need_r and declared.product_gates:
            d_recurrent = of_gates(d_gates, declared.gates, declared.recurrent).transpose(0, 1)
            h = states[0, start:end].reshape(rows, N, D)
            if N == 1:
                sums.add_product("r", d_recurrent.flatten(0, 1).flatten(1), h.view(rows, D))
            else:
                sums.add("r", outer(d_recurrent.flatten(0, 1), h))
        if need_bias:
            sums.add("bias", gates.sum((0, 1)))
        if K:
            sums.add("weights", d_weights.sum(0))
    if K:
        d_weights = sums.of("weights", x, (K, N, D))
    if need_initial and T == 0:
        carried = torch.zeros_like(carried) if d_last is None else d_last.clone()
    elementwise = declared.recurrence != DENSE
    return (
        d_x.transpose(0, 1) if need_x else none,
        sums.of("w", x, w.shape) if need_w else none,
        (d_weights[: len(declared.recurrent)] if elementwise else sums.of("r", x, r.shape))
        if need_r
        else none,
        sums.of("bias", x, (G, N, D)) if need_bias else none,
        d_weights[-len(declared.parameters) :] if need_parameters else none,
        carried if need_initial else none,
    )


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
        states, last, saved = torch.ops.flashrnn.layer_training(
            x, w, r, bias, parameters, initial, cell
        )
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
        grads = torch.ops.flashrnn.layer_backward(*ctx.saved_tensors, d_h, d_last, ctx.cell, need)
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
    h, last = torch.ops.flashrnn.layer.default(x, w, r, bias, parameters, initial, cell.key)
    return h, last
