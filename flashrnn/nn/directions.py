"""Both directions of a layer side by side: one in the caller's thread, one in a second.

A direction keeps B * N threads busy, its rows and heads; more of them share units and have to meet
after every step. So where there are more, the two directions run at once, each with half of the
threads and nobody to wait for; otherwise one after the other, each with all. What is computed does
not depend on it: kernels give the same bits on any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch

from flashrnn.dims import Dims
from flashrnn.runtime.launch import PARALLEL_PRODUCTS
from flashrnn.runtime.threads import limited_threads, thread_count

Tensor = torch.Tensor
OptionalTensor = Tensor | None
Result = TypeVar("Result")
# A direction: tensors in, tensors out; and the tensors.
Direction = tuple[Callable[..., tuple[Tensor, ...]], Sequence[OptionalTensor]]


def run(directions: Sequence[Direction], dims: Dims) -> list[tuple[Tensor, ...]]:
    """The results of each direction. dims: those of one recurrence."""
    compiling = torch.compiler.is_compiling()
    if len(directions) == 1 or compiling or not (_worthwhile(dims) and _alone(directions)):
        return [call(*tensors) for call, tensors in directions]
    (first, its), (second, others) = directions
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*its, *others)):
        results = _Both.apply(first, second, len(its), *its, *others)
        half = len(results) // 2
        return [results[:half], results[half:]]
    with torch.no_grad():
        return list(_at_once(lambda: first(*its), lambda: second(*others)))


def _worthwhile(dims: Dims) -> bool:
    return thread_count() > dims.B * dims.N and dims.products >= PARALLEL_PRODUCTS


def _alone(directions: Sequence[Direction]) -> bool:
    """Whether nobody looks who would miss a second thread: a mode, a transform, a tracer."""
    return (
        all(t is None or t.device.type == "cpu" for _, tensors in directions for t in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        and not torch._C._is_any_autocast_enabled()
    )


def _at_once(first: Callable[[], Result], second: Callable[[], Result]) -> tuple[Result, Result]:
    """Run both, the second in another thread, each with half of the threads."""
    share = max(1, thread_count() // 2)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def elsewhere() -> Result:  # modes of autograd belong to a thread
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return limited(second)

    def limited(call: Callable[[], Result]) -> Result:
        with limited_threads(share):
            return call()

    other = _second_thread().submit(elsewhere)
    try:
        mine = limited(first)
    finally:
        other.exception()  # waits: nothing goes on behind an error
    return mine, other.result()


@lru_cache(maxsize=1)
def _second_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="flashrnn")


os.register_at_fork(after_in_child=_second_thread.cache_clear)  # threads do not survive a fork


class _Both(torch.autograd.Function):
    """Two directions as one step of autograd, so that their backward passes run at once too.

    Each direction has a graph of its own inside, on detached inputs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Callable[..., tuple[Tensor, ...]],
        second: Callable[..., tuple[Tensor, ...]],
        count: int,
        *tensors: OptionalTensor,
    ) -> tuple[Tensor, ...]:
        inside = [_leaf(t) for t in tensors]
        with torch.enable_grad():
            results = _at_once(lambda: first(*inside[:count]), lambda: second(*inside[count:]))
        every = (*results[0], *results[1])
        ctx.calls, ctx.count, ctx.results = (first, second), count, len(every)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *inside, *every)
        return tuple(r.detach() for r in every)

    @staticmethod
    def backward(ctx: Any, *grads: OptionalTensor) -> tuple[Any, ...]:
        saved, many, half = ctx.saved_tensors, len(ctx.needs_input_grad) - 3, ctx.results // 2
        tensors, inside, results = saved[:many], saved[many : 2 * many], saved[2 * many :]
        need = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # to be differentiated again: by the outer graph
            inside = tensors
            results = [r for k in range(2) for r in ctx.calls[k](*_part(tensors, k, ctx.count))]
        parts = [
            (
                results[k * half : (k + 1) * half],
                [t for t, n in zip(_part(inside, k, ctx.count), _part(need, k, ctx.count),
                                   strict=True) if n],
                grads[k * half : (k + 1) * half],
            )
            for k in range(2)
        ]  # fmt: skip
        found = [*map(_gradients, parts)] if torch.is_grad_enabled() else _at_once(
            lambda: _gradients(parts[0]), lambda: _gradients(parts[1])
        )  # fmt: skip
        each = iter([*found[0], *found[1]])
        return (None, None, None, *(next(each) if n else None for n in need))


def _leaf(t: OptionalTensor) -> OptionalTensor:
    return None if t is None else t.detach().requires_grad_(t.requires_grad)


def _part(whole: Sequence[Any], k: int, count: int) -> Sequence[Any]:
    return whole[k * count : (k + 1) * count]


def _gradients(
    part: tuple[Sequence[Tensor], list[Tensor], Sequence[OptionalTensor]],
) -> Sequence[OptionalTensor]:
    """Gradients of one direction's inputs from those of its results."""
    results, inputs, grads = part
    asked = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
    if not asked or not inputs:
        return [None] * len(inputs)
    outputs, cotangents = zip(*asked, strict=True)
    again = torch.is_grad_enabled()
    return torch.autograd.grad(
        outputs, inputs, cotangents, allow_unused=True, retain_graph=True, create_graph=again
    )
