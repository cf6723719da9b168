"""Linear attention over prefixes, with a decay per head and a non-causal prefix: chunked."""

from __future__ import annotations

import torch

from flashrnn.checks import check_tensor
from flashrnn.errors import DeviceError, DtypeError, ShapeError
from flashrnn.scan.linear import linear_scan

Tensor = torch.Tensor

# Steps whose interactions are a dense product; between chunks the states are a linear scan.
CHUNK = 64


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    decay: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """S_t = exp(decay_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, in time O(T).

    q, k [B, T, N, K], feature maps applied; v [B, T, N, V]; one floating dtype (16 bits are
    computed in float32). decay [B, T, N]: logarithm of the factor, at most 0 to be stable (-inf
    forgets everything); None for none. state [B, N, K, V], float32 for 16 bits: what came before,
    None for zeros. prefix: (k [B, M, N, K], v [B, M, N, V]), seen by every step, the first one
    included: their sum is added to the state at the start.

    Returns (o [B, T, N, V], state after the last step). Not normalised: for a denominator append
    a column of ones to v and divide by the last channel. Gradients to all, of any order.
    Within chunks it is products of torch's, on any device; backend: that of the `linear_scan`
    between them. Raises ShapeError, DtypeError, DeviceError, BackendError.

    Arora et al., "Just read twice", 2024, section 4 (prefix); Dao and Gu, "Transformers are SSMs",
    2024, section 6 (the scalar decay and the chunks).
    """
    _check(q, k, v, prefix, decay, state)
    B, T, N, K = q.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    start = v.new_zeros((B, N, K, v.shape[3]), dtype=dtype) if state is None else state
    if prefix is not None:
        start = start + torch.einsum("bmnk,bmnv->bnkv", *(x.to(dtype) for x in prefix))
    if T == 0:
        return v.clone(), start
    length = min(CHUNK, T)
    # [B, N, chunks, C, ...]; steps of padding neither add nor decay
    qs, ks, vs = (_chunks(x.to(dtype), length) for x in (q, k, v))
    inside = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if decay is None:
        weights = inside.to(dtype)
        to_end = from_start = qs.new_ones(1)
        whole = qs.new_ones(1, 1, 1, 1, 1)
    else:
        logs = _chunks(decay.to(dtype).unsqueeze(-1), length).squeeze(-1)
        between = _sums_between(logs, inside)
        weights = between.exp()
        to_end = weights[..., -1, :].unsqueeze(-1)
        sums = logs.cumsum(-1)
        from_start = sums.exp().unsqueeze(-1)
        whole = sums[..., -1].exp().transpose(1, 2)[..., None, None]
    o = (qs @ ks.mT * weights) @ vs
    added = (ks * to_end).mT @ vs
    after = linear_scan(whole, added.transpose(1, 2), start, backend=backend)
    before = torch.cat((start.unsqueeze(1), after[:, :-1]), 1).transpose(1, 2)
    o = o + (qs * from_start) @ before
    return o.flatten(2, 3)[:, :, :T].transpose(1, 2).to(v.dtype), after[:, -1]


def linear_attention_step(
    state: Tensor | None, q_t: Tensor, k_t: Tensor, v_t: Tensor, decay_t: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of streaming: q_t, k_t [B, N, K], v_t [B, N, V], decay_t [B, N] -> (o_t, state).

    In constant time and memory; a prefix is part of the state.
    """
    o, state = linear_attention(
        q_t.unsqueeze(1), k_t.unsqueeze(1), v_t.unsqueeze(1),
        decay=None if decay_t is None else decay_t.unsqueeze(1), state=state,
    )  # fmt: skip
    return o.squeeze(1), state


def _chunks(x: Tensor, length: int) -> Tensor:
    """[B, T, N, F] -> [B, N, chunks, length, F], zeros behind the last step."""
    missing = -x.shape[1] % length
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
    chunks: Tensor = x.transpose(1, 2).unflatten(2, (-1, length))
    return chunks


def _sums_between(logs: Tensor, inside: Tensor) -> Tensor:
    """[..., C] -> [..., i, j]: the sum of logs from j + 1 to i, -inf where j > i.

    Summed for each j, not as differences of running sums, which would lose digits and, with -inf,
    everything.
    """
    C = logs.shape[-1]
    below = inside.tril(-1)
    terms = logs.unsqueeze(-1).expand(*logs.shape, C).masked_fill(~below, 0.0)
    return terms.cumsum(-2).masked_fill(~inside, -torch.inf)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    decay: Tensor | None,
    state: Tensor | None,
) -> None:
    named = {"q": q, "k": k, "v": v, "decay": decay}
    for name, given in named.items():
        if given is None:
            continue
        x = check_tensor(name, given)
        if not x.is_floating_point() or x.dtype != v.dtype:
            raise DtypeError(f"{name} is {x.dtype}, v is {v.dtype}: one floating dtype for all")
        if x.device != v.device:
            raise DeviceError(f"{name} is on {x.device}, but v is on {v.device}")
    if q.dim() != 4 or q.shape != k.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ShapeError(
            "q, k [B, T, N, K] and v [B, T, N, V] are "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    B, T, N, K = q.shape
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("decay", decay, (B, T, N)),
        ("state", state, (B, N, K, v.shape[3])),
    ]
    if prefix is not None:
        M = prefix[0].shape[1] if prefix[0].dim() == 4 else -1
        expected += [
            ("k of the prefix", prefix[0], (B, M, N, K)),
            ("v of the prefix", prefix[1], (B, M, N, v.shape[3])),
        ]
    for name, given, shape in expected:
        if given is not None and tuple(given.shape) != shape:
            raise ShapeError(f"{name} is {tuple(given.shape)}, must be {shape}")
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is not None and state.dtype != wide:
        raise DtypeError(f"state is {state.dtype}, must be {wide} where v is {v.dtype}")
