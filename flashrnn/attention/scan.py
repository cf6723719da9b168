"""Attention over every prefix: check arguments, choose a back end, run."""

from __future__ import annotations

from itertools import pairwise

import torch

from flashrnn.checks import check_tensor
from flashrnn.dtypes import SCANNED, arithmetic, scanned_dtype_of
from flashrnn.errors import DeviceError, DtypeError, ShapeError
from flashrnn.runtime.scan_attention import scan_attention as on_cpu
from flashrnn.runtime.triton_check import chosen_for_scan
from flashrnn.runtime.triton_scan_attention import scan_attention as by_triton
from flashrnn.scan_reference import ScanState
from flashrnn.scan_reference import attention_reference as reference

Tensor = torch.Tensor


def scan_attention(
    scores: Tensor,
    v: Tensor,
    state: ScanState | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ScanState]:
    """Attention of one query over every prefix of a sequence, in time and memory O(T D).

    scores [B, T, N]: of the query with each key, per head; -inf masks a step. v [B, T, N, D]: the
    values. Both float32, float64, bfloat16 or float16 (arithmetic is float32 at least), of any
    strides. state: of what came before, a ScanState (or m [B, N], u [B, N], w [B, N, D]) in the
    type of the arithmetic; None for nothing. cu_seqlens [G + 1], integers: with B = 1, sequences
    packed behind each other, the g-th from cu_seqlens[g] to cu_seqlens[g + 1]; states then have G
    rows. reverse: over every suffix, from the last step to the first.

    Returns (o [B, T, N, D], o_t = sum of softmax(s_1 … s_t) v; state after the last step). A prefix
    that is empty or masked throughout gives o = 0. Gradients flow to scores, v and the state from
    both results; what the last state's maximum receives goes to the score that attained it first.
    Deterministic. backend: "cpu"; "triton" (float32, bfloat16, float16 on an NVIDIA GPU);
    "reference" (O(T^2), any device, gradients of any order); or "auto": "cpu" for tensors on a
    CPU, "triton" for CUDA tensors that it takes, else "reference". Raises ShapeError, DtypeError,
    DeviceError, BackendError.

    Feng et al., "Attention as an RNN", 2024, section 3.
    """
    state, cu_seqlens = _checked(scores, v, state, cu_seqlens)
    chosen = chosen_for_scan(backend, v, "v")
    if chosen == "reference":
        return reference(scores, v, state, cu_seqlens=cu_seqlens, reverse=reverse)
    run = by_triton if chosen == "triton" else on_cpu
    o, m, u, w = run(scores, v, state, cu_seqlens, bool(reverse), True)
    return o, ScanState(m, u, w)


def attention_reduce(
    scores: Tensor,
    v: Tensor,
    state: ScanState | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ScanState]:
    """Attention over the whole sequence: the last output of `scan_attention` alone.

    Returns (o [B, N, D], state); with cu_seqlens [G, N, D]. Writes nothing per step. Arguments and
    errors as there.
    """
    state, cu_seqlens = _checked(scores, v, state, cu_seqlens)
    chosen = chosen_for_scan(backend, v, "v")
    if chosen == "reference":
        last = reference(scores, v, state, cu_seqlens=cu_seqlens)[1]
    else:
        run = by_triton if chosen == "triton" else on_cpu
        last = ScanState(*run(scores, v, state, cu_seqlens, False, False)[1:])
    return last.output().to(v.dtype), last


def step(
    state: ScanState | None, s_t: Tensor, v_t: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, ScanState]:
    """One step of streaming: s_t [B, N], v_t [B, N, D] -> (o_t [B, N, D], state).

    Costs the same at every position. Errors as for `scan_attention`.
    """
    for name, x, rank in (("s_t", s_t, 2), ("v_t", v_t, 3)):
        if not isinstance(x, Tensor) or x.dim() != rank:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{name} must have {rank} dimensions, got {shape}")
    o, last = scan_attention(s_t.unsqueeze(1), v_t.unsqueeze(1), state, backend=backend)
    return o.squeeze(1), last


def _storage() -> set[torch.dtype]:
    return {d.torch for d in SCANNED.values()}


def _checked(
    scores: Tensor,
    v: Tensor,
    state: ScanState | tuple[Tensor, Tensor, Tensor] | None,
    cu_seqlens: Tensor | None,
) -> tuple[ScanState | None, Tensor | None]:
    for name, tensor in (("scores", scores), ("v", v)):
        x = check_tensor(name, tensor)
        if not x.is_floating_point():
            raise DtypeError(f"{name} must be floating point, got {x.dtype}")
    if v.dim() != 4 or scores.dim() != 3 or scores.shape != v.shape[:3]:
        raise ShapeError(
            f"scores [B, T, N] and v [B, T, N, D] are {tuple(scores.shape)} and {tuple(v.shape)}"
        )
    B, T, N, D = v.shape
    if N < 1 or D < 1:
        raise ShapeError(f"v needs at least one head and one channel, got N = {N}, D = {D}")
    _same_place("scores", scores, "v", v, v.dtype)
    rows = B
    if cu_seqlens is not None:
        cu_seqlens = _offsets(cu_seqlens, B, T)
        rows = len(cu_seqlens) - 1
    if state is None:
        return None, cu_seqlens
    given = ScanState(*state)
    known = v.dtype in _storage()
    dtype = arithmetic(scanned_dtype_of(v.dtype)).torch if known else v.dtype
    for name, x, shape in zip("muw", given, ((rows, N), (rows, N), (rows, N, D)), strict=True):
        if tuple(x.shape) != shape:
            raise ShapeError(f"{name} of the state is {tuple(x.shape)}, must be {shape}")
        _same_place(f"{name} of the state", x, "v", v, dtype)
    return given, cu_seqlens


def _same_place(name: str, x: Tensor, other: str, y: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        raise DtypeError(f"{name} is {x.dtype}, must be {dtype} where {other} is {y.dtype}")
    if x.device != y.device:
        raise DeviceError(f"{name} is on {x.device}, but {other} is on {y.device}")


def _offsets(cu_seqlens: Tensor, B: int, T: int) -> Tensor:
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        kind = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise DtypeError(f"cu_seqlens must be a tensor of int32 or int64, got {kind}")
    if B != 1 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        raise ShapeError(
            f"cu_seqlens [G + 1] is {tuple(cu_seqlens.shape)} and needs B = 1, got B = {B}"
        )
    offsets = cu_seqlens.to("cpu", torch.int64).contiguous()
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != T or any(b < a for a, b in pairwise(values)):
        raise ShapeError(f"cu_seqlens must rise from 0 to T = {T}, got {values}")
    return offsets
