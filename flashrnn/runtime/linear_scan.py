"""Linear recurrences h_t = a_t h_{t-1} + b_t as torch operators; complex numbers lie as pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashrnn.dtypes import arithmetic, scanned_dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import LINEAR
from flashrnn.runtime import higher
from flashrnn.runtime.launch import sequence_maker
from flashrnn.runtime.memory import address
from flashrnn.runtime.registry import define, plain, unquestioned, watched
from flashrnn.runtime.scan_launch import ScanPlan, plan_for, rows_like, rows_of
from flashrnn.scan_reference import linear_reference

Tensor = torch.Tensor
OptionalTensor = Tensor | None


def _plan(direction: str, b: Tensor) -> ScanPlan:
    B, T, C = b.shape
    width = 2 if b.is_complex() else 1
    storage = scanned_dtype_of(b.dtype)
    return plan_for(LINEAR, direction, storage, b.is_complex(), B, T, C * width, 1)


def _empty(like: Tensor, B: int, T: int) -> Tensor:
    """[B, T, C] as like [B, T, C] (which may be an expanded tensor)."""
    C = like.shape[2]
    if like.is_complex():
        return torch.view_as_complex(sequence_maker(torch.view_as_real(like), (C, 2))())
    return sequence_maker(like, (C,))()


def initial_of(h0: OptionalTensor, b: Tensor) -> OptionalTensor:
    """h0 as the kernels read it: in the type of the arithmetic."""
    return None if h0 is None else h0.to(state_dtype(b)).contiguous()


def state_dtype(b: Tensor) -> torch.dtype:
    return b.dtype if b.is_complex() else arithmetic(scanned_dtype_of(b.dtype)).torch


def _cpu(a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
    (a, of_a), (b, of_b) = rows_of(a), rows_of(b)
    B, T, _ = b.shape
    h, plan = _empty(b, B, T), _plan(FORWARD, b)
    h0 = initial_of(h0, b)
    fields = (*of_a, *of_b, address(h0), *rows_of(h)[1])
    plan.run(fields, None, B, T, reverse, (plan.problem.columns,))
    return h


def _backward_cpu(
    a: Tensor, h: Tensor, d_h: Tensor, h0: OptionalTensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (a, of_a), (h, of_h), (d_h, of_d) = rows_of(a), rows_of(h), rows_of(d_h)
    B, T, _ = h.shape
    plan, h0 = _plan(BACKWARD, h), initial_of(h0, h)
    d_a, d_b = _empty(h, B, T), _empty(h, B, T)
    d_h0 = h.new_empty(0) if h0 is None else torch.empty_like(h0)
    out = (*rows_of(d_a)[1], *rows_of(d_b)[1], 0 if h0 is None else d_h0.data_ptr())
    fields = (*of_a, *of_h, *of_d, address(h0), *out)
    plan.run(fields, None, B, T, reverse, (plan.problem.columns,))
    return d_a, d_b, d_h0


def differentiable(
    name: str, forward_: Callable[..., Any], backward_: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The autograd Function of flashrnn::<name>, from its forward and backward implementations."""

    def operator(full: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(torch.ops.flashrnn, full).default
        return found

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
            h: Tensor = plain(operator(name), forward_)(a, b, h0, reverse)
            ctx.save_for_backward(a, b, h0, h)
            ctx.reverse = reverse
            return h

        @staticmethod
        def backward(ctx: Any, d_h: Tensor) -> tuple[OptionalTensor, ...]:
            *inputs, h = ctx.saved_tensors
            a, _, h0 = inputs

            def fused(run: Callable[..., Any]) -> tuple[OptionalTensor, ...]:
                d_a, d_b, d_h0 = run(a, h, d_h, h0, ctx.reverse)
                d_h0 = None if h0 is None else d_h0.to(h0.dtype)
                found = zip((d_a, d_b, d_h0), ctx.needs_input_grad[:3], strict=True)
                return tuple([d if need else None for d, need in found])

            if not (torch.is_grad_enabled() or watched()):
                return *fused(backward_), None
            run = plain(operator(f"{name}_backward"), backward_)

            def slow(a: Tensor, b: Tensor, h0: OptionalTensor) -> tuple[Tensor]:
                return (linear_reference(a, b, h0, ctx.reverse),)

            return *higher.gradients(lambda: fused(run), slow, inputs, (d_h,)), None

    return Function


def fake(a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
    return rows_like(b)


def backward_fake(
    a: Tensor, h: Tensor, d_h: Tensor, h0: OptionalTensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_h0 = h.new_empty(0) if h0 is None else h0.new_empty(h0.shape, dtype=state_dtype(h))
    return rows_like(h), rows_like(h), d_h0


SCHEMA = "(Tensor a, Tensor b, Tensor? h0, bool reverse) -> Tensor"
BACKWARD_SCHEMA = (
    "(Tensor a, Tensor h, Tensor d_h, Tensor? h0, bool reverse) -> "
    "(Tensor d_a, Tensor d_b, Tensor d_h0)"
)
_LinearScan = differentiable("linear_scan", _cpu, _backward_cpu)
_apply = unquestioned(_LinearScan)
define("linear_scan", SCHEMA, _cpu, fake, _LinearScan.apply)
define("linear_scan_backward", BACKWARD_SCHEMA, _backward_cpu, backward_fake)


def linear_scan(a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
    """flashrnn::linear_scan on checked tensors [B, T, C]."""
    run = plain(torch.ops.flashrnn.linear_scan.default, _cpu, _apply)
    h: Tensor = run(a, b, h0, reverse)
    return h
