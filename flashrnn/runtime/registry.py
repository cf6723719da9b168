"""Registration of operators with torch.library, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad

from flashrnn.errors import BackendError
from flashrnn.ir.cell import Cell
from flashrnn.options import Options

# The last arguments of every recurrence.
OPTIONS = "Tensor? lengths, float gradient_clip, bool gradient_cut, bool reverse"
# What follows a recurrence's tensors: the cell's key, and those.
Rest = tuple[str, torch.Tensor | None, float, bool, bool]

_library = torch.library.Library("flashrnn", "DEF")


def rest_of(cell: Cell, lengths: torch.Tensor | None, options: Options) -> Rest:
    """The last arguments, of a cell and options that were checked."""
    return cell.key, lengths, options.gradient_clip, options.gradient_cut, options.reverse


def define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    recorded: Callable[..., Any] | None = None,
    devices: tuple[str, ...] = ("CPU",),
) -> None:
    """Register flashrnn::<name>: its kernel, its shapes, and how autograd records it, if it does.

    recorded: an autograd Function's apply, or what calls one; it takes the operator's arguments and
    gives its results. It is used where a tensor argument needs a gradient; otherwise the call goes
    straight on to the kernel.
    """
    _library.define(f"{name}{schema}")
    for device in devices:
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"flashrnn::{name}", fake, lib=_library)
    if recorded is None:
        return
    operator = getattr(torch.ops.flashrnn, name).default
    _library.impl(name, _differentiable(operator, recorded), "Autograd")


def plain(
    operator: Callable[..., Any],
    cpu: Callable[..., Any],
    recorded: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """What to call for an operator on CPU tensors: itself, or its implementation where that is all.

    The dispatcher costs 10 µs a call. It is needed where somebody looks: while compiling or
    tracing, inside a mode or a transform.
    """
    if watched():
        return operator
    return cpu if recorded is None else _differentiable(cpu, recorded)


def unquestioned(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The Function's apply without its questions, which cost as much as allocating the results.

    For `plain` and `unwatched`, who know the answers: nobody looks, all tensors are `outside`.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc, no-any-return]


# A tensor that left a transform which has ended is only a shell: what is inside, or the tensor.
outside: Callable[[torch.Tensor], torch.Tensor] = torch._C._functorch.unwrap_if_dead


def unwatched(
    apply: Callable[..., Any],
    inference: Callable[..., Any],
    tensors: tuple[torch.Tensor | None, ...],
    rest: Rest,
) -> Any:
    """An operator where nobody looks and no forward-mode derivative is asked for, in less time.

    apply: as `unquestioned` gives it, of a Function that takes `rest` as one argument.
    """
    tensors = tuple([None if x is None else outside(x) for x in tensors])
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return apply(*tensors, rest)
    return inference(*tensors, *rest)


def watched() -> bool:
    """Whether somebody looks at each operator: a compiler, a tracer, a mode or a transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def unsupported_transform() -> str | None:
    """What the caller is inside that fused kernels do not carry, in words."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform (vmap, grad, jvp, ...)"
    return "forward-mode differentiation" if forward_ad._current_level >= 0 else None


@cache
def _differentiable(
    implementation: Callable[..., Any], recorded: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*given: Any) -> Any:
        arguments = [outside(a) if isinstance(a, torch.Tensor) else a for a in given]
        if forward_ad._current_level >= 0:
            _refuse_tangents(arguments)
        if torch.is_grad_enabled():
            for a in arguments:
                if isinstance(a, torch.Tensor) and a.requires_grad:
                    return recorded(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return implementation(*arguments)

    return run


def _refuse_tangents(arguments: Iterable[Any]) -> None:
    """A kernel reads a dual tensor's value and would lose its tangent without a word."""
    for a in arguments:
        if isinstance(a, torch.Tensor) and forward_ad.unpack_dual(a).tangent is not None:
            raise BackendError("fused kernels do not carry forward-mode differentiation")
