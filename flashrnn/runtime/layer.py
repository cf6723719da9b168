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
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.runtime import launch
from flashrnn.runtime.arguments import contiguous, of_gates, outer, unit_weights
from flashrnn.runtime.registry import define, refuse_second_derivative

Tensor = torch.Tensor
OptionalTensor = Tensor | None

# Rows (steps times batch) of one piece: enough for a matrix product to run at its full speed, few
# enough for their gates to stay in cache.
PIECE_ROWS = 1024

_INPUTS = (
    "Tensor x, Tensor w, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell"
)


def _pieces(dims: Dims) -> list[tuple[int, int]]:
    """The sequence in pieces [start, end) of about PIECE_ROWS rows."""
    count = min(dims.T, max(1, round(dims.T * dims.B / PIECE_ROWS)))
    return [(k * dims.T // count, (k + 1) * dims.T // count) for k in range(count)]


def _rows(x: Tensor, start: int, end: int) -> Tensor:
    """Steps [start, end) of x [B, T, ...] as rows [(T B), ...]: a view where T is outermost."""
    return x[:, start:end].transpose(0, 1).flatten(0, 1)


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
    states[:, 0] = 0 if initial is None else initial[: states.shape[0], :, 0]
    last = x.new_empty((S, B, 1, N, D))
    saved = x.new_empty(launch.saved_shape(cell, dims, dtype) if save else 0)
    kernel = launch.kernel_for(cell, FORWARD, x, dims)
    r, bias, weights = r.contiguous(), contiguous(bias), unit_weights(cell, r, parameters)
    before, w_t = contiguous(initial), w.reshape(G * N * D, I).t()
    pieces = _pieces(dims)
    products = x.new_empty((max((e - s for s, e in pieces), default=0), B, G, N, D))
    for start, end in pieces:
        wx = products[: end - start]
        torch.mm(_rows(x, start, end), w_t, out=wx.view((end - start) * B, w_t.shape[1]))
        kernel.forward(
            wx.transpose(0, 1),
            r,
            bias,
            weights,
            before,
            states[:, start + 1 : end + 1].transpose(1, 2),
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
    d_x = x.new_empty((T, B, I) if need_x else 0)
    w_rows = w.reshape(-1, I)
    d_w = torch.zeros_like(w_rows)
    d_r = r.new_zeros(r.shape) if need_r else r.new_empty(0)
    d_bias = r.new_zeros((G, N, D) if need_bias else 0)
    d_weights, d_weights_piece = r.new_zeros((B, K, N, D)), r.new_empty((B, K, N, D))
    carried = x.new_empty((S, B, 1, N, D))
    d_h = d_h.contiguous() if d_h is not None and d_h.stride(-1) != 1 else d_h
    kernel, r = launch.kernel_for(declared, BACKWARD, x, dims), r.contiguous()
    after = contiguous(d_last)
    pieces = _pieces(dims)
    gates = x.new_empty((max((e - s for s, e in pieces), default=0), B, G, N, D))
    for start, end in reversed(pieces):
        d_gates = gates[: end - start].transpose(0, 1)
        first = states[:, start].unsqueeze(2).contiguous()
        kernel.backward(
            r,
            weights,
            first,
            states[:, start + 1 : end + 1].transpose(1, 2),
            saved[start:end],
            None if d_h is None else d_h[None, :, start:end],
            after,
            d_gates,
            carried if need_initial or start > 0 else None,
            d_weights_piece,
        )
        after = carried
        rows = (end - start) * B
        d_wx = of_gates(d_gates, declared.gates, declared.input)
        d_rows = d_wx.transpose(0, 1).reshape(rows, w_rows.shape[0])
        if need_x:
            torch.mm(d_rows, w_rows, out=d_x[start:end].view(rows, I))
        if need_w:
            d_w.addmm_(d_rows.t(), _rows(x, start, end))
        if need_r and declared.product_gates:
            d_recurrent = of_gates(d_gates, declared.gates, declared.recurrent).transpose(0, 1)
            _add_outer(d_r, d_recurrent.flatten(0, 1), states[0, start:end])
        if need_bias:
            d_bias += gates[: end - start].view(rows, G, N, D).sum(0)
        if K:
            d_weights += d_weights_piece
    if need_r and declared.recurrence != DENSE:
        d_r = d_weights[:, : len(declared.recurrent)].sum(0)
    d_parameters = r.new_empty(0)
    if need_parameters:
        d_parameters = d_weights[:, -len(declared.parameters) :].sum(0)
    if need_initial and T == 0:
        carried = torch.zeros_like(carried) if d_last is None else d_last.clone()
    return (
        d_x.transpose(0, 1) if need_x else d_x,
        d_w.view(w.shape) if need_w else r.new_empty(0),
        d_r,
        d_bias,
        d_parameters,
        carried if need_initial else r.new_empty(0),
    )


def _add_outer(d_r: Tensor, d_gates: Tensor, h: Tensor) -> None:
    """Add the sum over rows of d_gates [rows, G, N, D] outer h [steps, B, N, P] to d_r."""
    rows, _, N, D = d_gates.shape
    if N == 1:
        d_r.view(-1, D).addmm_(d_gates.flatten(1).t(), h.reshape(rows, D))
    else:
        d_r += outer(d_gates, h.reshape(rows, N, D))


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
