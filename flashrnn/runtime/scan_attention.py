"""Attention over every prefix as torch operators: schemas, fake implementations, autograd.

flashrnn::scan_attention is what users reach. States are m, u [G, N] and w [G, N, D] in the type of
the arithmetic; G is the batch, or the number of packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashrnn.dtypes import arithmetic, scanned_dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.runtime import higher, pool
from flashrnn.runtime.launch import address
from flashrnn.runtime.registry import define, plain, unquestioned, watched
from flashrnn.runtime.scan_launch import ScanPlan, empty_rows, plan_for, rows_like, rows_of
from flashrnn.scan_reference import ScanState, attention_reference
from flashrnn.tiling.scan import BLOCK_ROWS

Tensor = torch.Tensor
OptionalTensor = Tensor | None
State = tuple[Tensor, Tensor, Tensor]
Fields = tuple[int, ...]
NOWHERE = (0, 0, 0)


def slots(sequences: int, T: int, packed: bool) -> int:
    """Blocks for which m and u are saved: `slot_of` in csrc/cpu/scan_attention.hpp."""
    return T // BLOCK_ROWS + sequences + 1 if packed else sequences * -(-T // BLOCK_ROWS)


def forward_into(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    o: OptionalTensor,
    last: State,
    saved: OptionalTensor,
    plan: ScanPlan | None = None,
) -> None:
    """The forward kernel on tensors that exist; o None for the last state alone.

    Every step of scores, v and o is contiguous; states altogether. plan: which kernel, None for
    the tuned or the cheapest one.
    """
    sequences, _, longest = sizes(scores, offsets)
    plan = plan or _plan(FORWARD, v, sequences, longest, training=saved is not None)
    _run(
        plan,
        _rows(scores) + _rows(v) + _state(state) + _rows(o) + _state(last) + (address(saved),),
        offsets, sequences, longest, reverse, v,
    )  # fmt: skip


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
    d_state: State | None,
    plan: ScanPlan | None = None,
) -> None:
    """The backward kernel on tensors that exist; o counts only with d_o."""
    sequences, _, longest = sizes(scores, offsets)
    plan = plan or _plan(BACKWARD, v, sequences, longest)
    _run(
        plan,
        _rows(scores) + _rows(v) + _rows(o if d_o is not None else None) + _rows(d_o)
        + _state(state) + _state(last) + _state(d_last) + (saved.data_ptr(),)
        + _rows(d_scores) + _rows(d_v) + _state(d_state),
        offsets, sequences, longest, reverse, v,
    )  # fmt: skip


def sizes(scores: Tensor, offsets: OptionalTensor) -> tuple[int, int, int]:
    """Sequences, steps of a row of the batch, and the longest sequence."""
    B, T = scores.shape[:2]
    if offsets is None:
        return B, T, T
    lengths = offsets.diff()
    return len(lengths), T, int(lengths.max()) if len(lengths) else 0


def _plan(
    direction: str, v: Tensor, sequences: int, longest: int, *, training: bool = False
) -> ScanPlan:
    storage, (N, D) = scanned_dtype_of(v.dtype), v.shape[2:]
    return plan_for(
        ATTENTION, direction, storage, False, sequences, longest, N, D, training=training
    )


def _run(
    plan: ScanPlan,
    fields: Fields,
    offsets: OptionalTensor,
    sequences: int,
    longest: int,
    reverse: bool,
    v: Tensor,
) -> None:
    plan.run(fields, offsets, sequences, longest, reverse, (v.shape[2], v.shape[3]))


def _rows(x: OptionalTensor) -> Fields:
    return NOWHERE if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def _state(state: State | None) -> Fields:
    return NOWHERE if state is None else tuple(x.data_ptr() for x in state)


def together(m: OptionalTensor, u: OptionalTensor, w: OptionalTensor) -> State | None:
    if m is None or u is None or w is None:
        return None
    return m.contiguous(), u.contiguous(), w.contiguous()


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
    scores, v = rows_of(scores)[0], rows_of(v)[0]
    N, D = v.shape[2:]
    sequences, T, _ = sizes(scores, offsets)
    real = arithmetic(scanned_dtype_of(v.dtype))
    o = empty_rows(v, (N, D)) if every else pool.small((0,), v.dtype)
    last = _state_on_cpu(v, sequences)
    shape = (slots(sequences, T, offsets is not None), 2, N) if save else (0,)
    saved = pool.small(shape, real.torch)
    forward_into(
        scores, v, together(m, u, w), offsets, reverse, o if every else None, last,
        saved if save else None,
    )  # fmt: skip
    return o, *last, saved


def empty_state(v: Tensor, sequences: int) -> State:
    real, (N, D) = arithmetic(scanned_dtype_of(v.dtype)).torch, v.shape[2:]
    shapes = ((sequences, N), (sequences, N), (sequences, N, D))
    m, u, w = (v.new_empty(shape, dtype=real) for shape in shapes)
    return m, u, w


def _state_on_cpu(v: Tensor, sequences: int) -> State:
    real, (N, D) = arithmetic(scanned_dtype_of(v.dtype)).torch, v.shape[2:]
    m, u = pool.small((sequences, N), real), pool.small((sequences, N), real)
    return m, u, pool.small((sequences, N, D), real)


def _cpu(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=False)[:4]


def _training_cpu(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _forward(*inputs, save=True)


def _backward_cpu(
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
    scores, v = rows_of(scores)[0], rows_of(v)[0]
    N, D = v.shape[2:]
    d_scores, d_v = empty_rows(scores, (N,)), empty_rows(v, (N, D))
    state, last = together(m, u, w), (last_m, last_u, last_w)
    d_state = None if state is None else _state_on_cpu(v, last_m.shape[0])
    d_last = filled((d_m, d_u, d_w), last)
    d_o = None if d_o is None else rows_of(d_o)[0]
    backward_into(
        scores, v, state, offsets, reverse, o, last, saved, d_o, d_last, d_scores, d_v, d_state
    )
    none = pool.small((0,), v.dtype)
    return d_scores, d_v, *(d_state or (none, none, none))


def filled(d: tuple[OptionalTensor, ...], last: State) -> State | None:
    """The last state's gradients, zeros where one is None; None where all are."""
    if all(x is None for x in d):
        return None
    given = zip(d, last, strict=True)
    return together(*(torch.zeros_like(x) if d is None else d.contiguous() for d, x in given))


def differentiable(
    name: str, training: Callable[..., Any], backward_: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The autograd Function of flashrnn::<name>, from its training and backward implementations."""

    def operator(what: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(torch.ops.flashrnn, f"{name}_{what}").default
        return found

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            run = plain(operator("training"), training)
            o, m, u, w, saved = run(*inputs)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[:6], o, m, u, w, saved)
            ctx.reverse, ctx.every = inputs[6:]
            if not ctx.every:
                ctx.mark_non_differentiable(o)
            return o, m, u, w

        @staticmethod
        def backward(ctx: Any, *gradients: OptionalTensor) -> tuple[OptionalTensor, ...]:
            *inputs, offsets, o, m, u, w, saved = ctx.saved_tensors
            d_o, *d_last = gradients
            if not ctx.every:
                d_o = None
            need = ctx.needs_input_grad[:5]
            if d_o is None and all(d is None for d in d_last):
                return (None,) * 8
            rest = (offsets, ctx.reverse, o, m, u, w, saved, d_o, *d_last)
            if not (torch.is_grad_enabled() or watched()):
                found = backward_(*inputs, *rest)
                return (*[d if n else None for d, n in zip(found, need, strict=True)],
                        None, None, None)  # fmt: skip
            run = plain(operator("backward"), backward_)

            def fused() -> tuple[OptionalTensor, ...]:
                found = run(*inputs, *rest)
                return tuple(d if n else None for d, n in zip(found, need, strict=True))

            def slow(
                scores: Tensor, v: Tensor, m: OptionalTensor, u: OptionalTensor, w: OptionalTensor
            ) -> tuple[Tensor, ...]:
                state = None if m is None or u is None or w is None else ScanState(m, u, w)
                every, last = attention_reference(
                    scores, v, state, cu_seqlens=offsets, reverse=ctx.reverse
                )
                return every, *last

            return *higher.gradients(fused, slow, inputs, (d_o, *d_last)), None, None, None

    return Function


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
    (B, T, N, _), packed = v.shape, offsets is not None
    sequences = offsets.shape[0] - 1 if offsets is not None else B
    state = empty_state(v, sequences)
    o = rows_like(v) if every else v.new_empty(0)
    saved = v.new_empty((slots(sequences, T, packed), 2, N), dtype=state[0].dtype)
    return o, *state, saved


def _fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _training_fake(*inputs)[:4]


def backward_fake(scores: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    state = empty_state(v, rest[6].shape[0])
    none = tuple(v.new_empty(0) for _ in state)
    return rows_like(scores), rows_like(v), *(none if rest[0] is None else state)


_INPUTS = "Tensor scores, Tensor v, Tensor? m, Tensor? u, Tensor? w, Tensor? offsets, bool reverse"
_LAST = "Tensor last_m, Tensor last_u, Tensor last_w"
SCHEMA = f"({_INPUTS}, bool every) -> (Tensor o, {_LAST})"
TRAINING_SCHEMA = f"({_INPUTS}, bool every) -> (Tensor o, {_LAST}, Tensor saved)"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor o, {_LAST}, Tensor saved, Tensor? d_o, Tensor? d_m, Tensor? d_u, "
    "Tensor? d_w) -> (Tensor d_scores, Tensor d_v, Tensor d_m0, Tensor d_u0, Tensor d_w0)"
)
_ScanAttention = differentiable("scan_attention", _training_cpu, _backward_cpu)
_apply = unquestioned(_ScanAttention)
define("scan_attention", SCHEMA, _cpu, _fake, _ScanAttention.apply)
define("scan_attention_training", TRAINING_SCHEMA, _training_cpu, _training_fake)
define("scan_attention_backward", BACKWARD_SCHEMA, _backward_cpu, backward_fake)


def scan_attention(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    every: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """flashrnn::scan_attention on checked tensors: (o, m, u, w), o empty unless `every`."""
    run = plain(torch.ops.flashrnn.scan_attention.default, _cpu, _apply)
    m, u, w = state or (None, None, None)
    o, last_m, last_u, last_w = run(scores, v, m, u, w, offsets, reverse, every)
    return o, last_m, last_u, last_w
