"""A whole layer as one operator: the input product, the recurrence and every gradient.

What it does stands in layer_kernels.py; here, how it is registered, differentiated and called.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from flashrnn.ir.cell import Cell
from flashrnn.options import Options
from flashrnn.reference import reference
from flashrnn.runtime import higher
from flashrnn.runtime.layer_kernels import (
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
    "Tensor x, Tensor w, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell, "
    + OPTIONS
)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        rest: Rest,
    ) -> tuple[Tensor, Tensor]:
        run = plain(torch.ops.flashrnn.layer_training.default, training)
        states, last, saved = run(x, w, r, bias, parameters, initial, *rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, r, bias, parameters, initial, states, saved, rest[1])
        ctx.rest = rest
        return states[0], last

    @staticmethod
    def backward(
        ctx: Any, d_h: OptionalTensor, d_last: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        if torch.is_grad_enabled() or watched():
            return _watched_backward(ctx, d_h, d_last)
        x, w, r, _, parameters, initial, states, saved, lengths = ctx.saved_tensors
        cell, _, clip, cut, reverse = ctx.rest
        grads = gradients(
            x, w, r, parameters, initial, states, saved, d_h, d_last, ctx.needs_input_grad[:6],
            cell, lengths, clip, cut, reverse,
        )  # fmt: skip
        return (*grads, None)


_apply = unquestioned(_Layer)


def _watched_backward(
    ctx: Any, d_h: OptionalTensor, d_last: OptionalTensor
) -> tuple[OptionalTensor, ...]:
    """The same where gradients may be differentiated again, or somebody looks at operators."""
    *inputs, states, saved, lengths = ctx.saved_tensors
    x, w, r, _, parameters, initial = inputs
    need = list(ctx.needs_input_grad[:6])
    cell, _, *options = ctx.rest
    run = plain(torch.ops.flashrnn.layer_backward.default, gradients)

    def fused() -> tuple[OptionalTensor, ...]:
        grads = run(
            x, w, r, parameters, initial, states, saved, d_h, d_last, need, cell, lengths,
            *options,
        )  # fmt: skip
        return tuple(g if n else None for g, n in zip(grads, need, strict=True))

    slow = partial(by_reference, ctx.rest)
    grads = higher.gradients(fused, slow, inputs, (d_h, d_last))
    return (*grads, None)


def by_reference(
    rest: Rest,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
) -> tuple[Tensor, Tensor]:
    """The layer in operations that autograd differentiates any number of times."""
    cell, lengths, clip, cut, reverse = rest
    wx = torch.nn.functional.linear(x, w.flatten(0, 2)).unflatten(2, w.shape[:3])
    options = Options(clip, cut, reverse)
    every, last = reference(wx, r, bias, initial, cell, parameters, lengths, options)
    return every[0], last


def _recorded(*inputs: Any) -> tuple[Tensor, Tensor]:
    h, last = _Layer.apply(*inputs[:6], inputs[6:])
    return h, last


define("layer", f"({_INPUTS}) -> (Tensor h, Tensor last)", inference, inference_fake, _recorded)
define(
    "layer_training",
    f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
    training,
    training_fake,
)
define(
    "layer_backward",
    "(Tensor x, Tensor w, Tensor r, Tensor? parameters, Tensor? initial, Tensor states, "
    f"Tensor saved, Tensor? d_h, Tensor? d_last, bool[] need, str cell, {OPTIONS}) -> "
    "(Tensor d_x, Tensor d_w, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
    backward,
    backward_fake,
)


def layer(
    cell: Cell,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    lengths: OptionalTensor,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """flashrnn::layer on checked tensors: (h [B, T, N, D], last [S, B, 1, N, D])."""
    run = plain(torch.ops.flashrnn.layer.default, inference, _recorded)
    rest = rest_of(cell, lengths, options)
    h, last = run(x, w, r, bias, parameters, initial, *rest)
    return h, last


def layer_unwatched(tensors: tuple[OptionalTensor, ...], rest: Rest) -> tuple[Tensor, Tensor]:
    """`layer` in less time where nobody looks; tensors: x, w, r, bias, parameters and initial."""
    h, last = unwatched(_apply, inference, tensors, rest)
    return h, last
