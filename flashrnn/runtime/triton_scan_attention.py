"""Attention over every prefix by Triton's kernels, as torch operators.

flashrnn::triton_scan_attention has the arguments and results of flashrnn::scan_attention, for CUDA
tensors, and for CPU tensors where Triton's interpreter runs them.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.runtime import scan_attention_kernels as cpu
from flashrnn.runtime.gpu_tensors import gpu_dtype_of
from flashrnn.runtime.registry import define, plain
from flashrnn.runtime.scan_attention import (
    BACKWARD_SCHEMA,
    SCHEMA,
    TRAINING_SCHEMA,
    differentiable,
)
from flashrnn.runtime.scan_attention_kernels import OptionalTensor, State, together
from flashrnn.runtime.scan_launch import rows_like
from flashrnn.runtime.triton_launch import in_rows, strides
from flashrnn.runtime.triton_scan import FINISH, JOIN, TOTALS, TritonScanPlan, plan_for, rounded
from flashrnn.tiling.triton_scan import TritonScanProblem

Tensor = torch.Tensor
_DEVICES = ("CPU", "CUDA")
_NONE = (None, None, None)


def problem_of(direction: str, v: Tensor, sequences: int, longest: int) -> TritonScanProblem:
    """The problem that serves a call."""
    N, D = v.shape[2:]
    storage = gpu_dtype_of(v.dtype, "v")
    return TritonScanProblem(
        ATTENTION, direction, storage, False, sequences * N, rounded(longest), D
    )


def forward_into(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    o: OptionalTensor,
    last: State,
    saved: OptionalTensor,
    plan: TritonScanPlan | None = None,
) -> None:
    """The forward kernels on tensors that exist; o None for the last state alone.

    saved [2, B, N, T]: m and u of every step, in the order of the scan; None in inference. States
    are contiguous. plan: which kernels, None for the tuned or the cheapest ones.
    """
    call = _Call(FORWARD, scores, v, offsets, reverse, plan)
    inputs = (scores, *scores.stride(), call.v, *strides(call.v))
    results = (*_rows(o), *(last if call.chunks == 1 else _NONE))
    results += (saved, 0 if saved is None else saved[0].numel())
    if call.chunks == 1:
        call.run(FINISH, *inputs, *(state or _NONE), *results)
        return
    part, at = call.states(), call.states()
    call.run(TOTALS, *inputs, *part)
    call.join(*(state or _NONE), *part, *at, *last)
    if o is not None or saved is not None:
        call.run(FINISH, *inputs, *at, *results)


def backward_into(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    o: OptionalTensor,
    last: State,
    saved: Tensor,
    d_o: OptionalTensor,
    d_last: State | None,
    d_scores: Tensor,
    d_v: Tensor,
    plan: TritonScanPlan | None = None,
) -> State | None:
    """The backward kernels on tensors that exist; o counts only with d_o.

    Returns the gradient of the state, None without one.
    """
    call = _Call(BACKWARD, scores, v, offsets, reverse, plan)
    behind = None if d_last is None else call.behind(last, d_last)
    d_m = None if d_last is None else _of_maximum(last, d_last)
    out = call.carries(1)
    y = (*_rows(o if d_o is not None else None), *_rows(None if d_o is None else in_rows(d_o)))
    y += (saved, saved[0].numel())
    # scores' gradients are sums over channels: parts of them, where programs share a head
    sums = d_scores.unsqueeze(0)
    if call.plan.parts > 1:
        sums = d_scores.new_empty((call.plan.parts, *d_scores.shape), dtype=torch.float32)
    entering: tuple[OptionalTensor, ...] = behind or _NONE
    if call.chunks > 1:
        part, at = call.carries(call.chunks), call.carries(call.chunks)
        call.run(TOTALS, *y, *part)
        call.join(*entering, *part, *at, *out)
        entering = at
    call.run(
        FINISH, scores, *scores.stride(), call.v, *strides(call.v), *y, *entering,
        None if state is None else state[0], last[0], d_m, sums, *sums.stride(), *_rows(d_v),
        *(out if call.chunks == 1 else _NONE),
    )  # fmt: skip
    if call.plan.parts > 1:
        d_scores.copy_(sums.sum(0))
    return None if state is None else of_state(state, out, last, d_m)


class _Call:
    """One direction's kernels with what is the same for all of them."""

    def __init__(
        self,
        direction: str,
        scores: Tensor,
        v: Tensor,
        offsets: OptionalTensor,
        reverse: bool,
        plan: TritonScanPlan | None,
    ) -> None:
        sequences, T, longest = cpu.sizes(scores, offsets)
        self.v, self.sequences = in_rows(v), sequences
        self.plan = plan or plan_for(problem_of(direction, v, sequences, longest), v)
        self.chunks = self.plan.chunks(longest)
        self.N, self.D = v.shape[2:]
        on_device = None if offsets is None else offsets.to(v.device)
        self._sizes = (
            on_device, T, self.N, self.chunks, self.plan.tiling.t_per_chunk, int(reverse),
        )  # fmt: skip

    def run(self, kernel: str, *arguments: Any) -> None:
        self._launch(kernel, self.chunks, *arguments)

    def join(self, *arguments: Any) -> None:
        self._launch(JOIN, 1, *arguments)

    def _launch(self, kernel: str, chunks: int, *arguments: Any) -> None:
        rows = self.sequences * self.N
        self.plan.launch(kernel, self.v, rows, chunks, *arguments, *self._sizes)

    def _empty(self, *shape: int) -> Tensor:
        return self.v.new_empty((self.sequences, self.N, *shape), dtype=torch.float32)

    def states(self) -> State:
        """m, u and w of every chunk."""
        return self._empty(self.chunks), self._empty(self.chunks), self._empty(self.chunks, self.D)

    def carries(self, chunks: int) -> State:
        """m, sigma of every program that shares a head, and S of every chunk."""
        parts = self.plan.parts
        return self._empty(chunks), self._empty(chunks, parts), self._empty(chunks, self.D)

    def behind(self, last: State, d_last: State) -> State:
        """The carry that the last state's gradients are."""
        sigma = torch.zeros_like(self._empty(self.plan.parts))
        sigma[..., 0] = -d_last[1]
        return last[0], sigma, d_last[2]


def _of_maximum(last: State, d_last: State) -> Tensor:
    """What the score that attained the last maximum receives, or the state's maximum."""
    d_m, d_u, d_w = d_last
    return d_m - (last[2] * d_w).sum(-1) - last[1] * d_u


def of_state(state: State, carry: State, last: State, d_m: OptionalTensor) -> State:
    """The gradients of the initial state from the carry before the first step."""
    m, u, w = state
    first, sigma, s = carry[0].squeeze(-1), carry[1].sum((-1, -2)), carry[2].squeeze(-2)
    kept = torch.where(m == first, 0.0, m - first).exp()
    d_u, d_w = -kept * sigma, kept.unsqueeze(-1) * s
    d = (w * d_w).sum(-1) + u * d_u
    if d_m is not None:
        d = d + torch.where(m == last[0], d_m, 0.0)
    return d, d_u, d_w


def _rows(x: OptionalTensor) -> tuple[Any, ...]:
    return (None, 0, 0, 0) if x is None else (x, *strides(x))


def _forward(
    scores: Tensor,
    v: Tensor,
    m: OptionalTensor,
    u: OptionalTensor,
    w: OptionalTensor,
    offsets: OptionalTensor,
    reverse: bool,
    every: bool,
    *,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sequences, T, _ = cpu.sizes(scores, offsets)
    state = together(m, u, w)
    o = rows_like(v) if every else v.new_empty(0)
    last = cpu.empty_state(v, sequences)
    saved = v.new_empty(_saved_shape(v) if save else (0,), dtype=torch.float32)
    if T == 0 or sequences == 0:
        fresh = (last[0].fill_(-torch.inf), last[1].zero_(), last[2].zero_())
        return o, *(fresh if state is None else (x.clone() for x in state)), saved
    forward_into(
        scores, v, state, offsets, reverse, o if every else None, last, saved if save else None
    )
    return o, *last, saved


def _saved_shape(v: Tensor) -> tuple[int, ...]:
    B, T, N, _ = v.shape
    return (2, B, N, T)


def _inference(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=False)[:4]


def _training(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=True)


def _backward(
    scores: Tensor,
    v: Tensor,
    m: OptionalTensor,
    u: OptionalTensor,
    w: OptionalTensor,
    offsets: OptionalTensor,
    reverse: bool,
    o: Tensor,
    last_m: Tensor,
    last_u: Tensor,
    last_w: Tensor,
    saved: Tensor,
    d_o: OptionalTensor,
    d_m: OptionalTensor,
    d_u: OptionalTensor,
    d_w: OptionalTensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    state, last = together(m, u, w), (last_m, last_u, last_w)
    d_scores, d_v = rows_like(scores), rows_like(v)
    d_last = cpu.filled((d_m, d_u, d_w), last)
    none = v.new_empty(0)
    if scores.shape[1] == 0 or last_m.shape[0] == 0:
        given = d_last or tuple(torch.zeros_like(x) for x in last)
        return d_scores, d_v, *((none,) * 3 if state is None else (x.clone() for x in given))
    d_state = backward_into(
        scores, v, state, offsets, reverse, o, last, saved, d_o, d_last, d_scores, d_v
    )
    return d_scores, d_v, *(d_state or (none, none, none))


def _training_fake(
    scores: Tensor,
    v: Tensor,
    m: OptionalTensor,
    u: OptionalTensor,
    w: OptionalTensor,
    offsets: OptionalTensor,
    reverse: bool,
    every: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sequences = v.shape[0] if offsets is None else offsets.shape[0] - 1
    o = rows_like(v) if every else v.new_empty(0)
    return o, *cpu.empty_state(v, sequences), v.new_empty(_saved_shape(v), dtype=torch.float32)


def _fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _training_fake(*inputs)[:4]


_ScanAttention = differentiable("triton_scan_attention", _training, _backward)
define("triton_scan_attention", SCHEMA, _inference, _fake, _ScanAttention.apply, devices=_DEVICES)
define(
    "triton_scan_attention_training", TRAINING_SCHEMA, _training, _training_fake,
    devices=_DEVICES,
)  # fmt: skip
define(
    "triton_scan_attention_backward", BACKWARD_SCHEMA, _backward, cpu.backward_fake,
    devices=_DEVICES,
)  # fmt: skip


def scan_attention(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    every: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """flashrnn::triton_scan_attention on checked tensors: (o, m, u, w), o empty unless `every`."""
    run = plain(torch.ops.flashrnn.triton_scan_attention.default, _inference, _ScanAttention.apply)
    m, u, w = state or (None, None, None)
    o, last_m, last_u, last_w = run(scores, v, m, u, w, offsets, reverse, every)
    return o, last_m, last_u, last_w
