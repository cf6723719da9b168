"""The slow, obvious attention over prefixes: masked softmax in O(T^2), for any dtype and device."""

from __future__ import annotations

from itertools import pairwise

import torch

from flashrnn.attention.state import ScanState, merge

Tensor = torch.Tensor


def reference(
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
        o, last = reference(scores[:, start:end], v[:, start:end], own, reverse=reverse)
        outputs.append(o)
        states.append(last)
    if not states:
        return torch.zeros_like(v), ScanState.empty(0, v.shape[2], v.shape[3], v)
    m, u, w = (torch.cat(parts) for parts in zip(*states, strict=True))
    return torch.cat(outputs, 1), ScanState(m, u, w)
