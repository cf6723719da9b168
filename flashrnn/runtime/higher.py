"""Derivatives of a fused backward pass, by differentiating the reference.

A fused kernel has one derivative, also fused. Where autograd is asked for the derivative of that
(create_graph=True), the first gradients still come from the fused kernels; the second ones, and
those of any higher order, from the reference, which is run again: correct, and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
OptionalTensor = Tensor | None


def gradients(
    fused: Callable[[], tuple[OptionalTensor, ...]],
    slow: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[OptionalTensor],
    cotangents: Sequence[OptionalTensor],
) -> tuple[OptionalTensor, ...]:
    """What fused() gives, one gradient per input (None where none is needed).

    slow(*inputs): the function whose gradients these are, in operations that autograd knows, with
    one result per cotangent. Differentiable wherever autograd records.
    """
    if not torch.is_grad_enabled():
        return fused()
    result: tuple[OptionalTensor, ...] = _Gradients.apply(
        fused, slow, len(inputs), *inputs, *cotangents
    )
    return result


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fused: Callable[[], tuple[OptionalTensor, ...]],
        slow: Callable[..., tuple[Tensor, ...]],
        count: int,
        *tensors: OptionalTensor,
    ) -> tuple[OptionalTensor, ...]:
        ctx.slow, ctx.count = slow, count
        ctx.device = next(x.device.type for x in tensors if x is not None)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return fused()

    @staticmethod
    def backward(ctx: Any, *seconds: OptionalTensor) -> tuple[OptionalTensor, ...]:
        further = torch.is_grad_enabled()
        with torch.enable_grad(), torch.autocast(ctx.device, enabled=False):
            tensors = [_leaf(x, further) for x in ctx.saved_tensors]
            inputs, cotangents = tensors[: ctx.count], tensors[ctx.count :]
            results = ctx.slow(*inputs)
            used = [(y, d) for y, d in zip(results, cotangents, strict=True) if d is not None]
            asked = [(x, s) for x, s in zip(inputs, seconds, strict=True) if s is not None]
            firsts = _grad([y for y, _ in used], [x for x, _ in asked], [d for _, d in used], True)
            seen = [
                (f, s)
                for f, (_, s) in zip(firsts, asked, strict=True)
                if f is not None and f.requires_grad
            ]
            wanted = [x for x, n in zip(tensors, ctx.needs_input_grad[3:], strict=True) if n]
            found = iter(_grad([f for f, _ in seen], wanted, [s for _, s in seen], further))
        given = (next(found) if n else None for n in ctx.needs_input_grad[3:])
        return (None, None, None, *given)


def _leaf(x: OptionalTensor, further: bool) -> OptionalTensor:
    """A tensor to differentiate by that nothing else in the graph leads to.

    An input may be computed from another one; the partial derivatives are wanted.
    """
    if x is None:
        return None
    if further and x.requires_grad:
        return x.view_as(x)
    return x.detach().requires_grad_()


def _grad(
    results: list[Tensor], inputs: list[Any], cotangents: list[Any], create_graph: bool
) -> Sequence[OptionalTensor]:
    if not results or not inputs:
        return [None] * len(inputs)
    return torch.autograd.grad(
        results, inputs, cotangents, create_graph=create_graph, allow_unused=True
    )
