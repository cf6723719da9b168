"""The slow, obvious implementation of any cell, in any dtype and on any device.

It interprets the cell's equations step by step with torch operations, so torch's autograd gives
its gradients, of any order. The kernels are held to its float64 results.
"""

from __future__ import annotations

import torch

from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.ir.interpreter import evaluate

Tensor = torch.Tensor


def reference(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str | Cell = "lstm",
    parameters: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All T steps of a cell.

    Wx [B, T, G_w, N, D]; R [G_r, N, D, P], or [G_r, N, D] for an element-wise recurrence;
    b [G, N, D] or None for zeros; states [S, B, 1, N, D], the initial states, or None for zeros;
    parameters [K, N, D] for a cell that declares some. Returns the states after every step
    [S, B, T, N, D] and after the last [S, B, 1, N, D]. Source: the cell's own equations.
    """
    cell = cell_of(function)
    B, T, _, N, D = Wx.shape
    S = len(cell.states)
    if states is None:
        states = Wx.new_zeros((S, B, 1, N, D))
    now = list(states[:, :, 0].unbind(0))
    weights = _weights(cell, R, parameters)
    steps = []
    for t in range(T):
        inputs = {("state", name): now[s] for s, name in enumerate(cell.states)} | weights
        for k, name in enumerate(cell.gates):
            inputs[("gate", name)] = _gate(cell, name, k, Wx[:, t], R, b, now[0])
        now = [x.expand(B, N, D) for x in evaluate(cell.new_states, inputs)]
        steps.append(torch.stack(now))
    every = torch.stack(steps, 2) if steps else Wx.new_zeros((S, B, 0, N, D))
    return every, torch.stack(now).unsqueeze(2)


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
