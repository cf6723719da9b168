"""What is checked of the tensors of a call, whatever runs it."""

from __future__ import annotations

import torch

from flashrnn.errors import DeviceError, DtypeError, ShapeError
from flashrnn.ir.cell import DENSE, Cell

Tensor = torch.Tensor


def check(
    cell: Cell,
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None,
    states: Tensor | None,
    parameters: Tensor | None,
) -> None:
    """Raise ShapeError, DtypeError or DeviceError where `flashrnn`'s arguments fit no such cell.

    Wx: anything of its shape, dtype and device.
    """
    named = (("Wx", Wx), ("R", R), ("b", b), ("states", states), ("parameters", parameters))
    for name, given in named:
        if given is None and name not in ("Wx", "R"):
            continue
        x = check_tensor(name, given)
        if not x.is_floating_point():
            raise DtypeError(f"{name} must be floating point, got {x.dtype}")
        if x.dtype != Wx.dtype:
            raise DtypeError(f"{name} is {x.dtype}, but Wx is {Wx.dtype}: all must be the same")
        if x.device != Wx.device:
            raise DeviceError(f"{name} is on {x.device}, but Wx is on {Wx.device}")
    if Wx.dim() != 5:
        raise ShapeError(f"Wx must be [B, T, G_w, N, D] (5 dimensions), got {tuple(Wx.shape)}")
    B, _, _, N, D = Wx.shape
    if N < 1 or D < 1:
        raise ShapeError(f"Wx needs at least one head and one unit, got N = {N}, D = {D}")
    same("Wx", "[B, T, G_w, N, D]", Wx, (B, Wx.shape[1], len(cell.input), N, D), cell)
    if cell.recurrence == DENSE:
        same("R", "[G_r, N, D, P]", R, (len(cell.recurrent), N, D, D), cell)
    else:
        same("R", "[G_r, N, D]", R, (len(cell.recurrent), N, D), cell)
    if b is not None:
        same("b", "[G, N, D]", b, (len(cell.gates), N, D), cell)
    if states is not None:
        same("states", "[S, B, 1, N, D]", states, (len(cell.states), B, 1, N, D), cell)
    if parameters is not None:
        same("parameters", "[K, N, D]", parameters, (len(cell.parameters), N, D), cell)
    elif cell.parameters:
        raise ShapeError(
            f"{cell.name} has the parameters {', '.join(cell.parameters)}: "
            f"pass parameters [{len(cell.parameters)}, {N}, {D}]"
        )


def check_tensor(name: str, x: object) -> Tensor:
    """x, if it is a dense tensor; else raise ShapeError."""
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise ShapeError(
            f"{name} must be a dense tensor, its layout is {x.layout}: use to_dense(), or pad "
            "sequences to one length"
        )
    return x


def same(name: str, layout: str, x: Tensor, expected: tuple[int, ...], cell: Cell) -> None:
    """Raise ShapeError where x, of dimensions named `layout`, has not the expected shape."""
    if tuple(x.shape) != expected:
        raise ShapeError(
            f"{name} {layout} is {tuple(x.shape)}, but {cell.name} (gates {' '.join(cell.gates)}) "
            f"with these sizes needs {expected}"
        )


def lengths_of(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """The lengths as the kernels read them, for x [B, T, ...]; who runs them checks their range."""
    if lengths is None:
        return None
    B = x.shape[0]
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.is_complex():
        kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise DtypeError(f"lengths must be a tensor of integers, got {kind}")
    if tuple(lengths.shape) != (B,):
        raise ShapeError(f"lengths [B] is {tuple(lengths.shape)}, but there are B = {B} rows")
    return lengths.to("cpu", torch.int64).contiguous()


def states_shape(cell: Cell, Wx: Tensor) -> tuple[int, ...]:
    """Of states after every step, [S, B, T, N, D]."""
    B, T, _, N, D = Wx.shape
    return len(cell.states), B, T, N, D
