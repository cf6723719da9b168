"""The linear recurrence h_t = a_t h_{t-1} + b_t: check arguments, run."""

from __future__ import annotations

import torch

from flashrnn.checks import check_tensor
from flashrnn.errors import DeviceError, DtypeError, ShapeError
from flashrnn.runtime.linear_scan import linear_scan as on_cpu
from flashrnn.runtime.triton_check import chosen_for_scan
from flashrnn.runtime.triton_linear_scan import linear_scan as by_triton
from flashrnn.scan_reference import linear_reference

Tensor = torch.Tensor


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    reverse: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for every channel by itself.

    b [B, T, ...]: float32, float64, complex64, complex128, or bfloat16 and float16 with arithmetic
    in float32. a: of b's dtype and of a shape that broadcasts to b's; constant over time or batch
    it is never expanded in memory, but its gradient is before it is summed. h0 [B, ...]: the state
    before the first step, None for zeros, in b's dtype (or float32 for 16 bits). reverse: from the
    last step to the first, h_t = a_t h_{t+1} + b_t.

    Returns h [B, T, ...]; the last state is h[:, -1] (h[:, 0] with reverse). Gradients flow to a, b
    and h0; those of complex numbers follow torch's convention. Deterministic. backend: "cpu";
    "triton" (float32, complex64, bfloat16, float16 on an NVIDIA GPU); "reference" (a loop over T,
    any device, gradients of any order); or "auto": "cpu" for tensors on a CPU, "triton" for CUDA
    tensors that it takes, else "reference". Raises ShapeError, DtypeError, DeviceError,
    BackendError.
    """
    _check(a, b, h0)
    chosen = chosen_for_scan(backend, b, "b")
    if chosen == "reference":
        return linear_reference(a, b, h0, reverse)
    run = by_triton if chosen == "triton" else on_cpu
    B, _, *rest = b.shape
    h0 = None if h0 is None else h0.reshape(B, -1)
    if len(rest) == 1:  # each view costs as much as a tiny scan
        h: Tensor = run(a if a.shape == b.shape else _flat(a.expand(b.shape)), b, h0, bool(reverse))
        return h
    h = run(_flat(a.expand(b.shape)), b.flatten(2) if rest else b.unsqueeze(2), h0, bool(reverse))
    return h.view(b.shape) if h.is_contiguous() else h.reshape(b.shape)


def _flat(a: Tensor) -> Tensor:
    """[B, T, C] of an expanded tensor; copied per channel only, not over batch and time."""
    B, T, *rest = a.shape
    if not rest:
        return a.unsqueeze(2)
    if a.numel() and a.stride(0) == a.stride(1) == 0:
        return a[0, 0].reshape(1, 1, -1).expand(B, T, -1)
    if a.numel() and a.stride(1) == 0:
        return a[:, 0].reshape(B, 1, -1).expand(B, T, -1)
    if a.numel() and a.stride(0) == 0:
        return a[0].reshape(1, T, -1).expand(B, T, -1)
    return a.flatten(2)


def _check(a: Tensor, b: Tensor, h0: Tensor | None) -> None:
    for name, given in (("a", a), ("b", b), ("h0", h0)):
        if given is None and name == "h0":
            continue
        x = check_tensor(name, given)
        if not (x.is_floating_point() or x.is_complex()):
            raise DtypeError(f"{name} must be floating point or complex, got {x.dtype}")
        if x.device != b.device:
            raise DeviceError(f"{name} is on {x.device}, but b is on {b.device}")
    if b.dim() < 2:
        raise ShapeError(f"b must be [B, T, ...], got {tuple(b.shape)}")
    if a.dtype != b.dtype:
        raise DtypeError(f"a is {a.dtype}, but b is {b.dtype}: they must be the same")
    try:
        fits = torch.broadcast_shapes(a.shape, b.shape) == b.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(f"a {tuple(a.shape)} does not broadcast to b {tuple(b.shape)}")
    if h0 is None:
        return
    expected = (b.shape[0], *b.shape[2:])
    if tuple(h0.shape) != expected:
        raise ShapeError(f"h0 is {tuple(h0.shape)}, must be {expected} for b {tuple(b.shape)}")
    wide = b.dtype if b.is_complex() else torch.promote_types(b.dtype, torch.float32)
    if h0.dtype not in (b.dtype, wide):
        raise DtypeError(f"h0 is {h0.dtype}, but b is {b.dtype}")
