"""Linear recurrences by Triton's kernels, as torch operators.

flashrnn::triton_linear_scan has the arguments and results of flashrnn::linear_scan, for CUDA
tensors, and for CPU tensors where Triton's interpreter runs them.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import LINEAR
from flashrnn.runtime import linear_scan as cpu
from flashrnn.runtime.gpu_tensors import gpu_dtype_of
from flashrnn.runtime.registry import define, plain
from flashrnn.runtime.scan_launch import rows_like
from flashrnn.runtime.triton_launch import in_rows, strides
from flashrnn.runtime.triton_scan import FINISH, JOIN, TOTALS, TritonScanPlan, plan_for, rounded
from flashrnn.tiling.triton_scan import TritonScanProblem

Tensor = torch.Tensor
OptionalTensor = Tensor | None
_DEVICES = ("CPU", "CUDA")


def problem_of(direction: str, b: Tensor) -> TritonScanProblem:
    """The problem that serves a call with b [B, T, C]."""
    B, T, C = b.shape
    storage = gpu_dtype_of(torch.float32 if b.is_complex() else b.dtype, "b")
    return TritonScanProblem(LINEAR, direction, storage, b.is_complex(), B, rounded(T), C)


def forward_into(
    a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool, h: Tensor,
    plan: TritonScanPlan | None = None,
) -> None:  # fmt: skip
    """The forward kernels: a, b, h [B, T, C], h0 [B, C] contiguous, in the arithmetic's type."""
    plan = plan or plan_for(problem_of(FORWARD, b), b)
    _run(plan, b, (*_rows(a), *_rows(b)), (), h0, _rows(h), None, reverse)


def backward_into(
    a: Tensor, h: Tensor, d_h: Tensor, h0: OptionalTensor, reverse: bool, d_a: Tensor, d_b: Tensor,
    plan: TritonScanPlan | None = None,
) -> OptionalTensor:  # fmt: skip
    """The backward kernels; returns the gradient of h0, None without one."""
    plan = plan or plan_for(problem_of(BACKWARD, h), h)
    first = None if h0 is None else torch.empty_like(h0)
    results = (*_rows(h), *_rows(d_a), *_rows(d_b))
    initial = (_numbers(h0),)
    _run(plan, h, (*_rows(a), *_rows(d_h)), initial, None, results, first, not reverse)
    if first is None:
        return None
    return first * a[:, -1 if reverse else 0].to(first.dtype).conj()


def _run(
    plan: TritonScanPlan,
    like: Tensor,
    inputs: tuple[Any, ...],
    initial: tuple[Any, ...],
    before: OptionalTensor,
    results: tuple[Any, ...],
    last: OptionalTensor,
    reverse: bool,
) -> None:
    """The kernels of a schedule. before: h before the first step [B, C]; last: after the last."""
    B, T, C = like.shape
    chunks = plan.chunks(T)
    sizes = (T, chunks, plan.tiling.t_per_chunk, int(reverse))
    start = _numbers(before)
    if chunks > 1:
        shape = (B, chunks, C, *((2,) if like.is_complex() else ()))
        part_a, part_h, at_h = (like.new_empty(shape, dtype=torch.float32) for _ in range(3))
        plan.launch(TOTALS, like, B, chunks, *inputs, part_a, part_h, *sizes)
        plan.launch(JOIN, like, B, 1, start, part_a, part_h, at_h, *sizes)
        start = at_h
    plan.launch(FINISH, like, B, chunks, *inputs, *initial, start, *results, _numbers(last), *sizes)


def _numbers(x: OptionalTensor) -> OptionalTensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(x.resolve_conj()) if x is not None and x.is_complex() else x


def _rows(x: Tensor) -> tuple[Any, ...]:
    """The tensor with its strides in rows; copied where it is not in rows, or a conjugate view."""
    x = in_rows(x.resolve_conj())
    return (_numbers(x), *strides(x))


def _forward(a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
    h = rows_like(b)
    if b.numel():
        forward_into(a, b, cpu.initial_of(h0, b), reverse, h)
    return h


def _backward(
    a: Tensor, h: Tensor, d_h: Tensor, h0: OptionalTensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_a, d_b, h0 = rows_like(h), rows_like(h), cpu.initial_of(h0, h)
    d_h0: OptionalTensor = None
    if h.numel():
        d_h0 = backward_into(a, h, d_h, h0, reverse, d_a, d_b)
    elif h0 is not None:
        d_h0 = torch.zeros_like(h0)
    return d_a, d_b, h.new_empty(0) if d_h0 is None else d_h0


_LinearScan = cpu.differentiable("triton_linear_scan", _forward, _backward)
define("triton_linear_scan", cpu.SCHEMA, _forward, cpu.fake, _LinearScan.apply, devices=_DEVICES)
define(
    "triton_linear_scan_backward", cpu.BACKWARD_SCHEMA, _backward, cpu.backward_fake,
    devices=_DEVICES,
)  # fmt: skip


def linear_scan(a: Tensor, b: Tensor, h0: OptionalTensor, reverse: bool) -> Tensor:
    """flashrnn::triton_linear_scan on checked tensors [B, T, C]."""
    run = plain(torch.ops.flashrnn.triton_linear_scan.default, _forward, _LinearScan.apply)
    h: Tensor = run(a, b, h0, reverse)
    return h
