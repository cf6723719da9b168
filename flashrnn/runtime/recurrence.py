"""The recurrence as torch operators: how they are registered, differentiated and called.

What they do stands in recurrence_kernels.py. Autograd's kernel is written by hand: over a bare
autograd.Function it costs a fifth of what torch.library.register_autograd costs (6 against 28 µs).
"""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.ir.cell import Cell
from flashrnn.options import Options
from flashrnn.reference import reference
from flashrnn.runtime import higher
from flashrnn.runtime.recurrence_kernels import (
    backward,
    backward_fake,
    gradients,
    inference,
    inference_fake,
    training,
    training_fake,
)
from flashrnn.runtime.registry import (
    OPTIONS,
    Rest,
    define,
    plain,
    rest_of,
    unquestioned,
    unwatched,
    watched,
)

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_INPUTS = (
    "Tensor wx, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell, " + OPTIONS
)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        rest: Rest,
    ) -> tuple[Tensor, Tensor]:
        run = plain(torch.ops.flashrnn.recurrence_training.default, training)
        states, last, saved = run(wx, r, bias, parameters, initial, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(wx, r, bias, parameters, initial, states, saved, rest[1])
        ctx.rest = rest
        return states, last

    @staticmethod
    def backward(
        ctx: Any, d_states: OptionalTensor, d_last: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        if torch.is_grad_enabled() or watched():
            return _watched_backward(ctx, d_states, d_last)
        wx, r, _, parameters, initial, states, saved, _ = ctx.saved_tensors
        grads = gradients(
            wx, r, parameters, initial, states, saved, d_states, d_last, ctx.needs_input_grad[:5],
            *ctx.rest,
        )  # fmt: skip
        return (*grads, None)


_apply = unquestioned(_Recurrence)


def _watched_backward(
    ctx: Any, d_states: OptionalTensor, d_last: OptionalTensor
) -> tuple[OptionalTensor, ...]:
    """The same where gradients may be differentiated again, or somebody looks at operators."""
    *inputs, states, saved, lengths = ctx.saved_tensors
    wx, r, _, parameters, initial = inputs
    need = list(ctx.needs_input_grad[:5])
    cell, _, *options = ctx.rest
    run = plain(torch.ops.flashrnn.recurrence_backward.default, gradients)

    def fused() -> tuple[OptionalTensor, ...]:
        grads = run(
            wx, r, parameters, initial, states, saved, d_states, d_last, need, cell, lengths,
            *options,
        )  # fmt: skip
        return tuple(g if n else None for g, n in zip(grads, need, strict=True))

    def slow(
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
    ) -> tuple[Tensor, Tensor]:
        return reference(wx, r, bias, initial, cell, parameters, lengths, Options(*options))

    grads = higher.gradients(fused, slow, inputs, (d_states, d_last))
    return (*grads, None)


def _recorded(*inputs: Any) -> tuple[Tensor, Tensor]:
    states, last = _Recurrence.apply(*inputs[:5], inputs[5:])
    return states, last


define(
    "recurrence",
    f"({_INPUTS}) -> (Tensor states, Tensor last)",
    inference,
    inference_fake,
    _recorded,
)
define(
    "recurrence_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    training,
    training_fake,
)
define(
    "recurrence_backward",
    "(Tensor wx, Tensor r, Tensor? parameters, Tensor? initial, Tensor states, Tensor saved, "
    f"Tensor? d_states, Tensor? d_last, bool[] need, str cell, {OPTIONS}) -> "
    "(Tensor d_wx, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
    backward,
    backward_fake,
)


def recurrence(
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    lengths: OptionalTensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """flashrnn::recurrence on checked tensors: (states [S, B, T, N, D], last [S, B, 1, N, D])."""
    run = plain(torch.ops.flashrnn.recurrence.default, inference, _recorded)
    rest = rest_of(cell, lengths, options)
    states, last = run(wx, r, bias, parameters, initial, *rest)
    return states, last


def recurrence_unwatched(tensors: tuple[OptionalTensor, ...], rest: Rest) -> tuple[Tensor, Tensor]:
    """`recurrence` in less time where nobody looks; tensors: wx, r, bias, parameters, initial."""
    states, last = unwatched(_apply, inference, tensors, rest)
    return states, last
