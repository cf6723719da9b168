"""What attention's operators do: on tensors with values, by compiled scans, and on fakes.

States are m, u [G, N] and w [G, N, D] in the type of the arithmetic; G is the batch, or the number
of packed sequences.
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.dtypes import arithmetic, scanned_dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.runtime import pool
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.launch import sequence_maker
from flashrnn.runtime.memory import address
from flashrnn.runtime.ready import Ready, circumstances
from flashrnn.runtime.scan_launch import ScanPlan, plan_for, rows_like, rows_of
from flashrnn.tiling.scan import BLOCK_ROWS

Tensor = torch.Tensor
OptionalTensor = Tensor | None
State = tuple[Tensor, Tensor, Tensor]
Fields = tuple[int, ...]
NOWHERE = (0, 0, 0)
NO_STATE = (None, None, None)


def slots(sequences: int, T: int, packed: bool) -> int:
    """Blocks for which m and u are saved: `slot_of` in csrc/cpu/scan_attention.hpp."""
    return T // BLOCK_ROWS + sequences + 1 if packed else sequences * -(-T // BLOCK_ROWS)


# Where the addresses stand that `Ready.again` takes. Forward: of scores, v, m, u, w, o, the last m,
# u and w, saved. Backward: of scores, v, o, d_o, m, u, w, the last ones, their gradients, saved,
# d_scores, d_v, the gradients of m, u and w.
_POSITIONS = {
    FORWARD: (0, 3, 6, 7, 8, 9, 12, 13, 14, 15),
    BACKWARD: (0, 3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 25, 28, 29, 30),
}


def forward_ready(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    o: OptionalTensor,
    last: State,
    saved: OptionalTensor,
    plan: ScanPlan | None = None,
) -> Ready:
    """The forward kernel on tensors that exist; o None for the last state alone.

    Every step of scores, v and o is contiguous; states altogether. plan: which kernel, None for
    the tuned or the cheapest one.
    """
    sequences, _, longest = sizes(scores, offsets)
    plan = plan or _plan(FORWARD, v, sequences, longest, training=saved is not None)
    return plan.ready(
        _rows(scores) + _rows(v) + _state(state) + _rows(o) + _state(last) + (address(saved),),
        offsets, sequences, longest, reverse, tuple(v.shape[2:]), _POSITIONS[FORWARD],
    )  # fmt: skip


def backward_ready(
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
) -> Ready:
    """The backward kernel on tensors that exist; o counts only with d_o."""
    sequences, _, longest = sizes(scores, offsets)
    plan = plan or _plan(BACKWARD, v, sequences, longest)
    return plan.ready(
        _rows(scores) + _rows(v) + _rows(o if d_o is not None else None) + _rows(d_o)
        + _state(state) + _state(last) + _state(d_last) + (saved.data_ptr(),)
        + _rows(d_scores) + _rows(d_v) + _state(d_state),
        offsets, sequences, longest, reverse, tuple(v.shape[2:]), _POSITIONS[BACKWARD],
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


def _rows(x: OptionalTensor) -> Fields:
    return NOWHERE if x is None else (address(x), x.stride(0), x.stride(1))


def _state(state: State | None) -> Fields:
    return NOWHERE if state is None else tuple(address(x) for x in state)


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
) -> tuple[OptionalTensor, Tensor, Tensor, Tensor, OptionalTensor]:
    scores, v, state = rows_of(scores)[0], rows_of(v)[0], together(m, u, w)
    key = (
        v.dtype, v.shape, v.stride(), scores.stride(), state is None, reverse, every, save,
        *circumstances(),
    )  # fmt: skip
    form = _forward_forms.get(key) if offsets is None else None
    if form is None:
        form = _Forward(v, offsets)
        if offsets is None:  # others follow from the sequences' lengths, too
            _forward_forms.keep(key, form)
    o, saved = form.o() if every else None, form.saved() if save else None
    last = form.m(), form.m(), form.w()
    if form.ready is None:
        form.ready = forward_ready(scores, v, state, offsets, reverse, o, last, saved)
    form.ready.again(scores, v, *(state or NO_STATE), o, *last, saved)
    return o, *last, saved


class _Forward:
    """What makes the results of a call, and the call, once made."""

    def __init__(self, v: Tensor, offsets: OptionalTensor) -> None:
        sequences, T, _ = sizes(v, offsets)
        N, D = v.shape[2:]
        self.o = sequence_maker(v, (N, D))
        self.m, self.w = _state_makers(v, sequences)
        count = slots(sequences, T, offsets is not None)
        real = arithmetic(scanned_dtype_of(v.dtype)).torch
        self.saved = pool.maker((count, 2, N), None, real)
        self.ready: Ready | None = None


class _Backward:
    """The same of the gradients."""

    def __init__(self, scores: Tensor, v: Tensor, sequences: int) -> None:
        N, D = v.shape[2:]
        self.scores, self.v = sequence_maker(scores, (N,)), sequence_maker(v, (N, D))
        self.m, self.w = _state_makers(v, sequences)
        self.ready: Ready | None = None


_forward_forms: Kept[tuple[object, ...], _Forward] = Kept()
_backward_forms: Kept[tuple[object, ...], _Backward] = Kept()


def _state_makers(v: Tensor, sequences: int) -> tuple[pool.Maker, pool.Maker]:
    """Of m or u, and of w."""
    real, (N, D) = arithmetic(scanned_dtype_of(v.dtype)).torch, v.shape[2:]
    return pool.maker((sequences, N), None, real), pool.maker((sequences, N, D), None, real)


def empty_state(v: Tensor, sequences: int) -> State:
    real, (N, D) = arithmetic(scanned_dtype_of(v.dtype)).torch, v.shape[2:]
    shapes = ((sequences, N), (sequences, N), (sequences, N, D))
    m, u, w = (v.new_empty(shape, dtype=real) for shape in shapes)
    return m, u, w


def inference(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    o, m, u, w, _ = _forward(*inputs, save=False)
    return _nothing(m) if o is None else o, m, u, w


def training(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, OptionalTensor]:
    o, m, u, w, saved = _forward(*inputs, save=True)
    return _nothing(m) if o is None else o, m, u, w, saved


def _nothing(m: Tensor) -> Tensor:
    return m.new_empty(0)


def backward(
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
    scores, v, state = rows_of(scores)[0], rows_of(v)[0], together(m, u, w)
    last = last_m, last_u, last_w
    d_last = filled((d_m, d_u, d_w), last)
    d_o = None if d_o is None else rows_of(d_o)[0]
    every = None if d_o is None else o
    key = (
        v.dtype, v.shape, v.stride(), scores.stride(), state is None, reverse, d_last is None,
        None if d_o is None else (o.stride(), d_o.stride()), *circumstances(),
    )  # fmt: skip
    form = _backward_forms.get(key) if offsets is None else None
    if form is None:
        form = _Backward(scores, v, last_m.shape[0])
        if offsets is None:
            _backward_forms.keep(key, form)
    d_scores, d_v = form.scores(), form.v()
    d_state = None if state is None else (form.m(), form.m(), form.w())
    if form.ready is None:
        form.ready = backward_ready(
            scores, v, state, offsets, reverse, every, last, saved, d_o, d_last, d_scores, d_v,
            d_state,
        )  # fmt: skip
    form.ready.again(
        scores, v, every, d_o, *(state or NO_STATE), *last, *(d_last or NO_STATE), saved, d_scores,
        d_v, *(d_state or NO_STATE),
    )  # fmt: skip
    none = _nothing(last_m)
    return d_scores, d_v, *(d_state or (none, none, none))


def filled(d: tuple[OptionalTensor, ...], last: State) -> State | None:
    """The last state's gradients, zeros where one is None; None where all are."""
    if all(x is None for x in d):
        return None
    given = zip(d, last, strict=True)
    return together(*(torch.zeros_like(x) if d is None else d.contiguous() for d, x in given))


def training_fake(
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


def inference_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return training_fake(*inputs)[:4]


def backward_fake(scores: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    state = empty_state(v, rest[6].shape[0])
    none = tuple(v.new_empty(0) for _ in state)
    return rows_like(scores), rows_like(v), *(none if rest[0] is None else state)
