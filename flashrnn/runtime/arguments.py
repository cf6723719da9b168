"""What the operators do to their tensors on the way to and from a kernel."""

from __future__ import annotations

import torch

from flashrnn.errors import ShapeError
from flashrnn.ir.cell import DENSE, Cell

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


def check_lengths(lengths: Tensor | None, T: int) -> None:
    """Raise ShapeError where a row's length lies outside of 0 to T.

    Called where tensors have values: while a graph is compiled they have none.
    """
    if lengths is None or lengths.numel() == 0 or torch.compiler.is_compiling():
        return
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= T:
        raise ShapeError(f"lengths must lie between 0 and T = {T}, got {lengths.tolist()}")
