"""Attention over every prefix as torch operators: how they are registered, differentiated, called.

flashrnn::scan_attention is what users reach; what it does stands in scan_attention_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashrnn.runtime import higher
from flashrnn.runtime.registry import define, plain, unquestioned, watched
from flashrnn.runtime.scan_attention_kernels import (
    State,
    backward,
    backward_fake,
    inference,
    inference_fake,
    training,
    training_fake,
)
from flashrnn.scan_reference import ScanState, attention_reference

Tensor = torch.Tensor
OptionalTensor = Tensor | None


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


_INPUTS = "Tensor scores, Tensor v, Tensor? m, Tensor? u, Tensor? w, Tensor? offsets, bool reverse"
_LAST = "Tensor last_m, Tensor last_u, Tensor last_w"
SCHEMA = f"({_INPUTS}, bool every) -> (Tensor o, {_LAST})"
TRAINING_SCHEMA = f"({_INPUTS}, bool every) -> (Tensor o, {_LAST}, Tensor saved)"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor o, {_LAST}, Tensor saved, Tensor? d_o, Tensor? d_m, Tensor? d_u, "
    "Tensor? d_w) -> (Tensor d_scores, Tensor d_v, Tensor d_m0, Tensor d_u0, Tensor d_w0)"
)
_ScanAttention = differentiable("scan_attention", training, backward)
_apply = unquestioned(_ScanAttention)
define("scan_attention", SCHEMA, inference, inference_fake, _ScanAttention.apply)
define("scan_attention_training", TRAINING_SCHEMA, training, training_fake)
define("scan_attention_backward", BACKWARD_SCHEMA, backward, backward_fake)


def scan_attention(
    scores: Tensor,
    v: Tensor,
    state: State | None,
    offsets: OptionalTensor,
    reverse: bool,
    every: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """flashrnn::scan_attention on checked tensors: (o, m, u, w), o empty unless `every`."""
    run = plain(torch.ops.flashrnn.scan_attention.default, inference, _apply)
    m, u, w = state or (None, None, None)
    o, last_m, last_u, last_w = run(scores, v, m, u, w, offsets, reverse, every)
    return o, last_m, last_u, last_w
