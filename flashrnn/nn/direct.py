"""One direction of one layer as one step of autograd, where nobody looks closer.

Between what a module keeps and what `flashrnn.layer` takes lie a dozen views and sums. A node of
autograd for each of them costs more than a small kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from flashrnn.dtypes import BY_NAME
from flashrnn.ir.cell import DENSE
from flashrnn.repeated import special
from flashrnn.runtime import flat_layer, higher
from flashrnn.runtime.flat_layer import Inputs, Kind
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.layer import by_reference
from flashrnn.runtime.registry import outside, unquestioned

if TYPE_CHECKING:
    from flashrnn.nn.base import Recurrent

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_DTYPES = {d.torch for d in BY_NAME.values()}
# Whether flat_layer.py can do it, by the forms of module and tensors.
_fitting: Kept[tuple[object, ...], bool] = Kept()


def run(
    module: Recurrent,
    reverse: bool,
    x: Tensor,
    before: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, ...] | None:
    """The output [T, B, size] and final states [1, B, size]; None where `layer` has to be called.

    x [T, B, I]; before: initial states [B, size], if any. `layer` is called where the surroundings
    have a say, for what flat_layer.py does not do, and for what is in error.
    """
    if special():
        return None
    x, parameters = outside(x), [outside(p) for p in parameters]
    key = (
        type(module), module.cell, module.num_heads, module.hidden_size, module.proj_size,
        module.bias, module.backend, x.shape, x.stride(), x.dtype, x.is_cpu,
        *[(t.shape, t.dtype, t.is_cpu, t.is_contiguous()) for t in parameters],
    )  # fmt: skip
    fits = _fitting.get(key)
    if fits is None:
        fits = _fitting.keep(key, _fits(module, x, parameters))
    if not fits:
        return None
    initial = None
    if before:  # checked by the module, against x
        initial = torch.stack([outside(s) for s in before])
    clip = math.inf if module.gradient_clip is None else module.gradient_clip
    kind = Kind(module.cell, module.num_heads, clip, reverse)
    if torch.is_grad_enabled():
        for t in (x, *parameters, *before):
            if t.requires_grad:
                results: tuple[Tensor, ...] = _apply(module, kind, x, initial, *parameters)
                return results
    h, last, _ = flat_layer.forward(kind, _inputs(module, x, initial, parameters), save=False)
    return h[0], *_apart(last)


def _fits(module: Recurrent, x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether all is as flat_layer.py takes it."""
    (rows, _), *others = module._shapes(0).values()
    return (
        module.backend in ("auto", "cpu")
        and module.cell.recurrence == DENSE
        and module.proj_size == 0
        and x.dtype in _DTYPES
        and x.numel() > 0
        and x.stride(2) == 1
        and [tuple(t.shape) for t in parameters] == [(rows, x.shape[2]), *others]
        and all(t.dtype == x.dtype for t in parameters)
        and all(t.is_contiguous() for t in parameters)
        and all(t.is_cpu for t in (x, *parameters))
    )


def _apart(last: Tensor) -> Sequence[Tensor]:
    """The states of [S, 1, B, size], each in memory of its own: who keeps one keeps no other."""
    if len(last) == 1:
        return (last[0],)
    states: Sequence[Tensor] = torch.unbind_copy(last)  # type: ignore[func-returns-value,assignment]
    return states


def _inputs(
    module: Recurrent, x: Tensor, initial: OptionalTensor, parameters: Sequence[Tensor]
) -> Inputs:
    return Inputs(x, *module._in_cell_order(parameters), initial)


class _Direction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        module: Recurrent,
        kind: Kind,
        x: Tensor,
        initial: OptionalTensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = _inputs(module, x, initial, parameters)
        states, last, saved = flat_layer.forward(kind, inputs, save=True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, saved, x, initial, *parameters)
        ctx.module, ctx.kind = module, kind
        ctx.weights = inputs.w, inputs.r, inputs.parameters  # r may be a copy in another order
        return states[0], *_apart(last)

    @staticmethod
    def backward(ctx: Any, *d_results: OptionalTensor) -> tuple[OptionalTensor, ...]:
        states, saved, x, initial, *parameters = ctx.saved_tensors
        need_x, need_initial, *needs = ctx.needs_input_grad[2:]
        need = (need_x, *ctx.module._wanted_in_cell_order(needs), need_initial)
        w, r, unit = ctx.weights
        inputs = Inputs(x, w, r, None, unit, initial)
        d_h, *d_ends = d_results

        def fused() -> tuple[OptionalTensor, ...]:
            d_last = _together(d_ends, x, states.shape[3])
            grads = flat_layer.backward(ctx.kind, inputs, states, saved, d_h, d_last, need)
            d_x, *d, d_initial = grads
            return d_x, d_initial, *ctx.module._gradients_of(*d)

        slow = partial(_by_reference, ctx.module, ctx.kind)
        grads = higher.gradients(fused, slow, (x, initial, *parameters), d_results)
        return (None, None, *grads)


_apply = unquestioned(_Direction)


def _together(d_ends: Sequence[OptionalTensor], x: Tensor, size: int) -> OptionalTensor:
    """The final states' gradients [1, B, size] as [S, 1, B, size], zeros where one is None."""
    if all(d is None for d in d_ends):
        return None
    zeros = x.new_zeros(1, x.shape[1], size)
    return torch.stack([zeros if d is None else d for d in d_ends])


def _by_reference(
    module: Recurrent, kind: Kind, x: Tensor, initial: OptionalTensor, *parameters: Tensor
) -> tuple[Tensor, ...]:
    """The results in operations that autograd differentiates any number of times."""
    inputs = _inputs(module, x, initial, parameters)
    h, last = by_reference(kind.rest(), *inputs.layer(kind))
    return h.transpose(0, 1).flatten(2), *last.flatten(3).transpose(1, 2).unbind()
