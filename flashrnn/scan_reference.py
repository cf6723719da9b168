"""The slow, obvious scans, in operations that autograd knows: any dtype and device.

The state of attention over a prefix and how two of them join; attention by its masked softmax in
O(T^2); linear recurrences by a loop.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

Tensor = torch.Tensor


class ScanState(NamedTuple):
    """What is left of a prefix: its size does not depend on the prefix's length.

    m [B, N]: the largest score (-inf for an empty prefix). u [B, N]: the sum of e^(s - m).
    w [B, N, D]: the sum of e^(s - m) v. The output is w / u. float32 for 16-bit inputs.
    """

    m: Tensor
    u: Tensor
    w: Tensor

    @staticmethod
    def empty(B: int, N: int, D: int, like: Tensor) -> ScanState:
        """The state of the empty prefix, on the device of `like`, for inputs of its dtype."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        m = like.new_full((B, N), -torch.inf, dtype=dtype)
        return ScanState(m, torch.zeros_like(m), like.new_zeros((B, N, D), dtype=dtype))

    def output(self) -> Tensor:
        """The attention's output [B, N, D]; zero for an empty prefix."""
        u = self.u.unsqueeze(-1)
        return torch.where(u == 0, 0.0, self.w / torch.where(u == 0, 1.0, u))


def merge(a: ScanState, b: ScanState) -> ScanState:
    """The state of two parts together, in either order: associative, the empty state neutral.

    For a prefix that was split over devices or programs. Differentiable. Feng et al., "Attention
    as an RNN", 2024, section 3.2, with the factors of an empty side defined as no change.
    """
    m = torch.maximum(a.m, b.m)
    of_a, of_b = _ratio(a.m, m), _ratio(b.m, m)
    u = a.u * of_a + b.u * of_b
    w = a.w * of_a.unsqueeze(-1) + b.w * of_b.unsqueeze(-1)
    return ScanState(m, u, w)


def _ratio(part: Tensor, m: Tensor) -> Tensor:
    """e^(part - m); 1 where they are equal, so that nothing minus nothing (-inf) is not NaN."""
    same = part == m
    return torch.where(same, 0.0, torch.where(same, 0.0, part) - torch.where(same, 0.0, m)).exp()


def attention_reference(
    scores: Tensor,
    v: Tensor,
    state: ScanState | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, ScanState]:
    """As `scan_attention`, computed by its definition; gradients of any order from torch."""
    if cu_seqlens is not None:
        return _packed(scores, v, state, cu_seqlens.tolist(), reverse)
    dtype = torch.promote_types(v.dtype, torch.float32)
    s, values = scores.to(dtype), v.to(dtype)
    if reverse:
        s, values = s.flip(1), values.flip(1)
    B, T, N = s.shape
    state = state or ScanState.empty(B, N, v.shape[3], s)
    if T == 0:
        return v.clone(), state
    o = _outputs(s, values, state)
    o = o.flip(1) if reverse else o
    m = s.amax(1)
    p = (s - _finite(m).unsqueeze(1)).exp()
    own = ScanState(m, p.sum(1), torch.einsum("btn,btnd->bnd", p, values))
    return o.to(v.dtype), merge(state, own)


def _outputs(s: Tensor, v: Tensor, state: ScanState) -> Tensor:
    """A softmax per row over the scores up to it, the initial state standing first."""
    T = s.shape[1]
    ahead = torch.ones(T, T, dtype=torch.bool, device=s.device).triu(1)
    # [B, N, T, T]: each row's own maximum, over the prefix alone
    masked = s.transpose(1, 2).unsqueeze(2).masked_fill(ahead, -torch.inf)
    m = torch.maximum(masked.amax(-1), state.m.unsqueeze(-1))
    finite = _finite(m).detach()  # cancels in w / u
    p = (masked - finite.unsqueeze(-1)).exp()
    old = (state.m.unsqueeze(-1) - finite).exp()
    u = p.sum(-1) + old * state.u.unsqueeze(-1)
    w = torch.einsum("bnts,bsnd->bntd", p, v) + old.unsqueeze(-1) * state.w.unsqueeze(2)
    o = torch.where((u == 0).unsqueeze(-1), 0.0, w / torch.where(u == 0, 1.0, u).unsqueeze(-1))
    return o.transpose(1, 2)


def _finite(m: Tensor) -> Tensor:
    """m, 0 where every score is masked: e^(-inf - 0) is 0, as it should be."""
    return torch.where(m == -torch.inf, 0.0, m)


def _packed(
    scores: Tensor, v: Tensor, state: ScanState | None, offsets: list[int], reverse: bool
) -> tuple[Tensor, ScanState]:
    outputs, states = [], []
    for g, (start, end) in enumerate(pairwise(offsets)):
        own = None if state is None else ScanState(*(x[g : g + 1] for x in state))
        o, last = attention_reference(scores[:, start:end], v[:, start:end], own, reverse=reverse)
        outputs.append(o)
        states.append(last)
    if not states:
        return torch.zeros_like(v), ScanState.empty(0, v.shape[2], v.shape[3], v)
    m, u, w = (torch.cat(parts) for parts in zip(*states, strict=True))
    return torch.cat(outputs, 1), ScanState(m, u, w)


def linear_reference(
    a: Tensor, b: Tensor, h0: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """As `linear_scan` by its definition, a loop over time: any dtype, derivatives of any order."""
    a = a.expand(b.shape)
    dtype = b.dtype if b.is_complex() else torch.promote_types(b.dtype, torch.float32)
    h = torch.zeros_like(b[:, 0], dtype=dtype) if h0 is None else h0.to(dtype)
    steps: list[Tensor] = []
    for t in range(b.shape[1] - 1, -1, -1) if reverse else range(b.shape[1]):
        h = a[:, t].to(dtype) * h + b[:, t].to(dtype)
        steps.append(h)
    if not steps:
        return b.clone()
    return torch.stack(steps[::-1] if reverse else steps, 1).to(b.dtype)
