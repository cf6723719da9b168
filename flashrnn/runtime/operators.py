"""The recurrence as torch operators: schemas, fake implementations, autograd.

flashrnn::recurrence is what users reach. Its autograd kernel is written by hand: it costs a third
of what torch.library.register_autograd adds to a short sequence.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch.autograd.function import once_differentiable

from flashrnn.dims import Dims
from flashrnn.dtypes import dtype_of
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.passes.lower import lower
from flashrnn.runtime import launch

Tensor = torch.Tensor
_Optional = Optional[Tensor]

_INPUTS = "Tensor wx, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell"
_library = torch.library.Library("flashrnn", "DEF")  # noqa: TOR901  (lives as long as the process)
_library.define(f"recurrence({_INPUTS}) -> (Tensor states, Tensor last)")
_library.define(f"recurrence_training({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)")
_library.define(
    "recurrence_backward(Tensor r, Tensor? parameters, Tensor? initial, Tensor states, "
    "Tensor saved, Tensor? d_states, Tensor? d_last, str cell, bool[] need) -> "
    "(Tensor d_wx, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)"
)


def _forward(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, name: str,
    save: bool,
) -> launch.Forward:
    cell = cell_of(name)
    if wx.stride(-1) != 1:
        wx = wx.contiguous()
    return launch.forward(
        cell, wx, r.contiguous(), _contiguous(bias), _weights(cell, r, parameters),
        _contiguous(initial), save=save,
    )


def _recurrence_cpu(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, cell: str
) -> tuple[Tensor, Tensor]:
    done = _forward(wx, r, bias, parameters, initial, cell, save=False)
    return done.states, done.last


def _training_cpu(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, cell: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(wx, r, bias, parameters, initial, cell, save=True)


def _backward_cpu(
    r: Tensor, parameters: _Optional, initial: _Optional, states: Tensor,
    saved: Tensor, d_states: _Optional, d_last: _Optional, cell: str, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    declared = cell_of(cell)
    need_wx, need_r, need_bias, need_parameters, need_initial = need
    if d_states is not None and d_states.stride(-1) != 1:
        d_states = d_states.contiguous()
    initial = _contiguous(initial)
    done = launch.backward(
        declared, r.contiguous(), _weights(declared, r, parameters), initial, states, saved,
        d_states, _contiguous(d_last), need_initial=need_initial,
    )
    none = r.new_empty(0)
    d_wx = _of_gates(done.d_gates, declared.gates, declared.input) if need_wx else none
    d_r = none
    if need_r and declared.recurrence == DENSE:
        d_recurrent = _of_gates(done.d_gates, declared.gates, declared.recurrent)
        d_r = recurrent_weight_gradient(d_recurrent, states[0], initial)
    elif need_r:
        d_r = done.d_weights[:, : len(declared.recurrent)].sum(0)
    d_bias = done.d_gates.sum((0, 1)) if need_bias else none
    d_parameters = none
    if need_parameters:
        d_parameters = done.d_weights[:, -len(declared.parameters) :].sum(0)
    return d_wx, d_r, d_bias, d_parameters, done.d_initial


def recurrent_weight_gradient(d_gates: Tensor, h: Tensor, initial: _Optional) -> Tensor:
    """dR [G, N, D, P] = sum over b, t of d_gates[b, t] outer h[b, t - 1], as one product.

    d_gates [B, T, G, N, D], h [B, T, N, D] (the states after each step), initial [S, B, 1, N, D].
    """
    B, T, G, N, D = d_gates.shape
    first = initial[0] if initial is not None else h.new_zeros((B, 1, N, D))
    if launch.time_major(d_gates) or B == 1:
        # rows of consecutive steps follow each other, so the shift by one step is a view
        order = (1, 0, 2, 3, 4)
        rows_d = d_gates.permute(order).reshape(T * B, G, N, D)
        rows_h = h.permute(1, 0, 2, 3).reshape(T * B, N, D)
        d_r = _outer(rows_d[B:], rows_h[: (T - 1) * B]) if T > 1 else None
        if initial is not None or d_r is None:
            start = _outer(rows_d[: min(T, 1) * B], first[:, 0][: min(T, 1) * B])
            d_r = start if d_r is None else d_r.add_(start)
        return d_r
    before = torch.cat((first, h[:, :-1]), 1)[:, :T]
    return _outer(d_gates.reshape(B * T, G, N, D), before.reshape(B * T, N, D))


def _outer(d: Tensor, h: Tensor) -> Tensor:
    """Sum over rows of d [rows, G, N, D] outer h [rows, N, P]."""
    rows, G, N, D = d.shape
    if N == 1:
        return torch.mm(d.reshape(rows, G * D).t(), h.reshape(rows, D)).view(G, 1, D, D)
    heads = h.transpose(0, 1)
    return torch.stack([torch.bmm(d[:, g].permute(1, 2, 0), heads) for g in range(G)])


def _of_gates(x: Tensor, gates: tuple[str, ...], chosen: tuple[str, ...]) -> Tensor:
    """The chosen gates of x [B, T, G, N, D]: a view where they are neighbours."""
    at = [gates.index(g) for g in chosen]
    if at == list(range(at[0], at[0] + len(at))) if at else False:
        return x if len(at) == len(gates) else x[:, :, at[0] : at[0] + len(at)]
    return x[:, :, at]


def _weights(cell: Cell, r: Tensor, parameters: _Optional) -> _Optional:
    """Per-unit weights [K, N, D] in the kernel's order: element-wise R, then parameters."""
    parts = [] if cell.recurrence == DENSE else [r]
    if parameters is not None:
        parts.append(parameters)
    return torch.cat(parts) if parts else None


def _contiguous(x: _Optional) -> _Optional:
    return None if x is None else x.contiguous()


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional,
                initial: _Optional, cell: str) -> tuple[Tensor, Tensor]:  # fmt: skip
        states, last, saved = torch.ops.flashrnn.recurrence_training(
            wx, r, bias, parameters, initial, cell
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(r, parameters, initial, states, saved)
        ctx.cell = cell
        return states, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: _Optional, d_last: _Optional) -> tuple[_Optional, ...]:
        need = list(ctx.needs_input_grad[:5])
        grads = torch.ops.flashrnn.recurrence_backward(
            *ctx.saved_tensors, d_states, d_last, ctx.cell, need
        )
        return (*(g if n else None for g, n in zip(grads, need, strict=True)), None)


def _recurrence_autograd(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, cell: str
) -> tuple[Tensor, Tensor]:
    inputs = (wx, r, bias, parameters, initial)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _Recurrence.apply(*inputs, cell)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.flashrnn.recurrence.default(*inputs, cell)


def _fake_states(wx: Tensor, cell: str) -> tuple[Tensor, Tensor]:
    B, _, _, N, D = wx.shape
    S = len(cell_of(cell).states)
    return launch.empty_sequence(wx, (S,), (N, D)), wx.new_empty((S, B, 1, N, D))


def _recurrence_fake(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, cell: str
) -> tuple[Tensor, Tensor]:
    return _fake_states(wx, cell)


def _training_fake(
    wx: Tensor, r: Tensor, bias: _Optional, parameters: _Optional, initial: _Optional, cell: str
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, N, D = wx.shape
    shape = launch.saved_shape(cell_of(cell), Dims(B, T, N, D), dtype_of(wx.dtype))
    return (*_fake_states(wx, cell), wx.new_empty(shape))


def _backward_fake(
    r: Tensor, parameters: _Optional, initial: _Optional, states: Tensor,
    saved: Tensor, d_states: _Optional, d_last: _Optional, cell: str, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    declared = cell_of(cell)
    _, B, _, N, D = states.shape
    gates = launch.empty_sequence(states[0], (), (len(declared.gates), N, D))
    d_wx = _of_gates(gates, declared.gates, declared.input)
    shapes = (
        r.shape,
        (len(declared.gates), N, D),
        (len(declared.parameters), N, D),
        (len(declared.states), B, 1, N, D),
    )
    rest = [r.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True)]
    return (d_wx if need[0] else r.new_empty(0), rest[0], rest[1], rest[2], rest[3])


for _name, _cpu, _fake in (
    ("recurrence", _recurrence_cpu, _recurrence_fake),
    ("recurrence_training", _training_cpu, _training_fake),
    ("recurrence_backward", _backward_cpu, _backward_fake),
):
    _library.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"flashrnn::{_name}", _fake, lib=_library)
_library.impl("recurrence", _recurrence_autograd, "Autograd")


def recurrence(
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: _Optional,
    parameters: _Optional,
    initial: _Optional,
) -> tuple[Tensor, Tensor]:
    """flashrnn::recurrence on checked tensors: (states [S, B, T, N, D], last [S, B, 1, N, D])."""
    states, last = torch.ops.flashrnn.recurrence.default(
        wx, r, bias, parameters, initial, cell.key
    )
    return states, last
