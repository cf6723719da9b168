"""What the operators do to their tensors on the way to and from a kernel."""

from __future__ import annotations

import torch

from flashrnn.ir.cell import DENSE, Cell
from flashrnn.runtime.launch import time_major

Tensor = torch.Tensor


def contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor, copied if its memory has gaps."""
    return None if x is None else x.contiguous()


def innermost_contiguous(x: Tensor) -> Tensor:
    """The tensor, copied if neighbours in its last dimension are not neighbours in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def unit_weights(cell: Cell, r: Tensor, parameters: Tensor | None) -> Tensor | None:
    """Per-unit weights [K, N, D] in the kernel's order: element-wise R, then parameters."""
    parts = [] if cell.recurrence == DENSE else [r]
    if parameters is not None:
        parts.append(parameters)
    return torch.cat(parts) if parts else None


def of_gates(x: Tensor, gates: tuple[str, ...], chosen: tuple[str, ...]) -> Tensor:
    """The chosen gates of x [B, T, G, N, D]: a view where they are neighbours."""
    at = [gates.index(g) for g in chosen]
    if at and at == list(range(at[0], at[0] + len(at))):
        return x if len(at) == len(gates) else x[:, :, at[0] : at[0] + len(at)]
    return x[:, :, at]


def recurrent_weight_gradient(d_gates: Tensor, h: Tensor, initial: Tensor | None) -> Tensor:
    """dR [G, N, D, P] = sum over b, t of d_gates[b, t] outer h[b, t - 1], as one product.

    d_gates [B, T, G, N, D], h [B, T, N, D] (the states after each step), initial [S, B, 1, N, D].
    """
    B, T, G, N, D = d_gates.shape
    if (time_major(d_gates) or B == 1) and T > 1:
        # rows of consecutive steps follow each other, so the shift by one step is a view
        rows_d = d_gates.transpose(0, 1).reshape(T * B, G, N, D)
        rows_h = h.transpose(0, 1).reshape(T * B, N, D)
        d_r = outer(rows_d[B:], rows_h[:-B])
        if initial is not None:
            d_r += outer(rows_d[:B], initial[0, :, 0])
        return d_r
    first = initial[0] if initial is not None else h.new_zeros((B, 1, N, D))
    before = torch.cat((first, h[:, :-1]), 1)[:, :T]
    return outer(d_gates.reshape(B * T, G, N, D), before.reshape(B * T, N, D))


def outer(d: Tensor, h: Tensor) -> Tensor:
    """Sum over rows of d [rows, G, N, D] outer h [rows, N, P]: [G, N, D, P]."""
    rows, G, N, D = d.shape
    if N == 1:
        return torch.mm(d.reshape(rows, G * D).t(), h.reshape(rows, D)).view(G, 1, D, D)
    heads = h.transpose(0, 1)
    products = [torch.bmm(d[:, g].permute(1, 2, 0), heads) for g in range(G)]
    return torch.stack(products) if products else d.new_zeros((0, N, D, D))
