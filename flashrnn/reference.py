"""The slow, obvious implementation of any cell, in any dtype and on any device.

It interprets the cell's equations step by step with torch operations, so torch's autograd gives
its gradients, of any order. The kernels are held to its float64 results.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.ir.interpreter import evaluate
from flashrnn.options import NONE, Options

Tensor = torch.Tensor


def reference(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str | Cell = "lstm",
    parameters: Tensor | None = None,
    lengths: Tensor | None = None,
    options: Options = NONE,
) -> tuple[Tensor, Tensor]:
    """All T steps of a cell.

    Wx [B, T, G_w, N, D]; R [G_r, N, D, P], or [G_r, N, D] for an element-wise recurrence;
    b [G, N, D] or None for zeros; states [S, B, 1, N, D], the initial states, or None for zeros;
    parameters [K, N, D] for a cell that declares some. lengths [B]: the steps that each row has;
    past its end a row keeps its states, and its outputs are zero. Returns the states after every
    step [S, B, T, N, D] and after the last [S, B, 1, N, D]. Source: the cell's own equations.
    """
    cell = cell_of(function)
    B, T, _, N, D = Wx.shape
    S = len(cell.states)
    if states is None:
        states = Wx.new_zeros((S, B, 1, N, D))
    now = list(states[:, :, 0].unbind(0))
    weights = _weights(cell, R, parameters)
    ends = torch.full((B,), T) if lengths is None else lengths.cpu()
    rows = torch.arange(B)
    steps = []
    for t in range(T):
        active = (t < ends).to(Wx.device)[:, None, None]
        wx = Wx[rows, _position(ends, t, options.reverse)]
        if lengths is not None:  # what lies past the end may be anything, NaN too
            wx = torch.where(active[:, None], wx, torch.zeros_like(wx))
        before = [_through_time(now[0], options.gradient_clip), *now[1:]]
        h = before[0].detach() if options.gradient_cut else before[0]
        inputs = {("state", name): before[s] for s, name in enumerate(cell.states)} | weights
        for k, name in enumerate(cell.gates):
            inputs[("gate", name)] = _gate(cell, name, k, wx, R, b, h)
        new = [x.expand(B, N, D) for x in evaluate(cell.new_states, inputs)]
        if lengths is not None:
            new = [torch.where(active, x, old) for x, old in zip(new, now, strict=True)]
        now = new
        steps.append(torch.stack([torch.where(active, x, torch.zeros_like(x)) for x in now]))
    every = torch.stack(steps, 2) if steps else Wx.new_zeros((S, B, 0, N, D))
    if options.reverse and T > 0:
        order = torch.stack([_position(ends, t, True) for t in range(T)], 1)
        every = every[:, rows[:, None], order]
    return every, torch.stack(now).unsqueeze(2)


def _position(ends: Tensor, t: int, reverse: bool) -> Tensor:
    """Where step t of each row stands in time: [B]."""
    return torch.where((t < ends) & reverse, ends - 1 - t, t)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, bound: float) -> Tensor:
        ctx.bound = bound
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor, None]:
        return d_h.clamp(-ctx.bound, ctx.bound), None


def _through_time(h: Tensor, bound: float) -> Tensor:
    """h, through which gradients beyond the bound do not pass."""
    return h if math.isinf(bound) else _Clip.apply(h, bound)


def _weights(cell: Cell, R: Tensor, parameters: Tensor | None) -> dict[tuple[str, str], Tensor]:
    named: dict[tuple[str, str], Tensor] = {}
    if cell.recurrence != DENSE:
        named |= {("recurrent", g): R[k] for k, g in enumerate(cell.recurrent)}
    if parameters is not None:
        named |= {("parameter", p): parameters[k] for k, p in enumerate(cell.parameters)}
    return named


def _gate(
    cell: Cell, name: str, k: int, wx: Tensor, R: Tensor, b: Tensor | None, h: Tensor
) -> Tensor:
    """Wx + R h + b, of which a gate may lack the first two."""
    total = h.new_zeros(h.shape)
    if name in cell.input:
        total = total + wx[:, cell.input.index(name)]
    if name in cell.product_gates:
        r = R[cell.recurrent.index(name)]
        total = total + torch.einsum("ndp,bnp->bnd", r, h)
    return total if b is None else total + b[k]
