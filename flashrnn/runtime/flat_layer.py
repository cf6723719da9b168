"""A layer on tensors as modules have them, without a view between those and the kernels.

What layer_kernels.py does, for x [T, B, I], w [G_w * N * D, I], r [G_r * N * D, D], bias
[G * N * D], parameters [K, N * D], states [S, B, N * D] and outputs [T, B, N * D]: a view takes as
long as a quarter of a small kernel, and there would be a dozen. For dense recurrences on a CPU. All
contiguous, x and the outputs' gradient at least in their last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from flashrnn.dims import Dims
from flashrnn.ir.cell import Cell
from flashrnn.options import Options, options_of
from flashrnn.runtime import pool, ready, surround
from flashrnn.runtime.arguments import innermost_contiguous
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.layer_kernels import inference_soon, training_soon
from flashrnn.runtime.ready import circumstances
from flashrnn.runtime.registry import Rest, rest_of, watched

Tensor = torch.Tensor
OptionalTensor = Tensor | None


class Kind(NamedTuple):
    """What a layer computes, besides its sizes. clip: infinity for none."""

    cell: Cell
    heads: int
    clip: float
    reverse: bool

    @property
    def options(self) -> Options:
        """As kernels take them."""
        return options_of(self.clip, False, self.reverse)

    def rest(self) -> Rest:
        """What follows the tensors of `layer`'s operators."""
        return rest_of(self.cell, None, self.options)


class Inputs(NamedTuple):
    """The tensors of a layer."""

    x: Tensor
    w: Tensor
    r: Tensor
    bias: OptionalTensor
    parameters: OptionalTensor
    initial: OptionalTensor

    def dims(self, kind: Kind) -> Dims:
        """Of the recurrence."""
        T, B, _ = self.x.shape
        return Dims(B, T, kind.heads, self.r.shape[0] // len(kind.cell.recurrent) // kind.heads)

    def layer(self, kind: Kind) -> tuple[Any, ...]:
        """As `flashrnn.layer` takes them: views."""
        dims = self.dims(kind)
        B, N, D = dims.B, dims.N, dims.D
        x, w, r, bias, parameters, initial = self
        return (
            x.transpose(0, 1),
            w.view(-1, N, D, w.shape[1]),
            r.view(-1, N, D, r.shape[1]),
            None if bias is None else bias.view(-1, N, D),
            None if parameters is None else parameters.view(-1, N, D),
            None if initial is None else initial.view(-1, B, 1, N, D),
        )


class _Forward(ready.Forward):
    """What follows from the form of a forward call."""

    def __init__(self, kind: Kind, dtype: torch.dtype, dims: Dims, save: bool) -> None:
        states = len(kind.cell.states)
        soon, kept = (training_soon, states) if save else (inference_soon, 1)
        super().__init__(kind.cell, dtype, dims, kept, soon)
        B, T, row = dims.B, dims.T, dims.N * dims.D
        self.states = pool.pooled((kept, T, B, row), None, dtype)
        self.last = pool.maker((states, 1, B, row), None, dtype)


class _Backward(ready.Backward):
    """The same of a backward call."""

    def __init__(self, kind: Kind, inputs: Inputs, dims: Dims) -> None:
        x, w, r, _, parameters, _ = inputs
        count = 0 if parameters is None else len(parameters)
        super().__init__(kind.cell, r, dims, count)
        dtype, row = x.dtype, dims.N * dims.D
        self.x = pool.maker(x.shape, torch.empty_like(x).stride(), dtype)
        self.w = pool.maker(w.shape, None, dtype)
        self.bias = pool.maker((len(kind.cell.gates) * row,), None, dtype)
        self.weights = pool.maker((count, row), None, dtype)
        self.initial = pool.maker((len(kind.cell.states), dims.B, row), None, dtype)


_forward_forms: Kept[tuple[object, ...], _Forward] = Kept()
_backward_forms: Kept[tuple[object, ...], _Backward] = Kept()


def forward(kind: Kind, inputs: Inputs, *, save: bool) -> tuple[Tensor, Tensor, OptionalTensor]:
    """The states after each step [S, T, B, N * D], the last ones [S, 1, B, N * D], what is saved.

    Without save, h alone of the states, and None.
    """
    x, w, r, bias, parameters, initial = inputs
    key = (
        kind, x.shape, x.stride(), x.dtype, w.shape, r.shape, bias is None, parameters is None,
        initial is None, save, *circumstances(), surround.PIECE_ROWS,
    )  # fmt: skip
    form = _forward_forms.get(key)
    if form is None:
        form = _forward_forms.keep(key, _Forward(kind, x.dtype, inputs.dims(kind), save))
    states, last, saved = form.states(), form.last(), form.saved() if save else None
    if form.ready is None:
        dims = inputs.dims(kind)
        x_, w_, r_, bias_, parameters_, initial_ = inputs.layer(kind)
        arguments = form.kernel.forward(
            None, r_, bias_, parameters_, initial_, _steps(states, dims), _ends(last, dims), saved,
            None, kind.options,
        )  # fmt: skip
        form.ready = surround.forward(form.kernel, arguments, x_, w_)
    form.ready.again(x, w, r, bias, parameters, initial, states, last, saved, None)
    return states, last, saved


def backward(
    kind: Kind,
    inputs: Inputs,
    states: Tensor,
    saved: Tensor,
    d_h: OptionalTensor,
    d_last: OptionalTensor,
    need: Sequence[bool],
) -> tuple[OptionalTensor, ...]:
    """The gradients of the inputs from those of h and the last states; None where nobody asks.

    By an operator where somebody looks at operators.
    """
    if watched():
        dims = inputs.dims(kind)
        results = (_steps(states, dims), saved, *_cotangents(d_h, d_last, dims))
        return _by_operator(kind, inputs, results, need)
    x, w, r, _, parameters, initial = inputs
    d_h = None if d_h is None else innermost_contiguous(d_h)
    need_x, need_w, need_r, need_bias, need_parameters, need_initial = need
    key = (
        kind, x.shape, x.stride(), x.dtype, w.shape, r.shape, parameters is None, initial is None,
        None if d_h is None else d_h.stride(), d_last is None, *need, *circumstances(),
        surround.PIECE_ROWS,
    )  # fmt: skip
    form = _backward_forms.get(key)
    if form is None:
        form = _backward_forms.keep(key, _Backward(kind, inputs, inputs.dims(kind)))
    d_x = form.x() if need_x else None
    d_w = form.w() if need_w else None
    d_r = form.r() if need_r else None
    d_bias = form.bias() if need_bias else None
    d_parameters = form.weights() if parameters is not None else None
    d_initial = form.initial() if need_initial else None
    if form.ready is None:
        dims = inputs.dims(kind)
        x_, w_, r_, _, parameters_, initial_ = inputs.layer(kind)
        arguments = form.kernel.backward(
            r_, parameters_, initial_, _steps(states, dims), saved, *_cotangents(d_h, d_last, dims),
            None, d_initial, None, None, kind.options,
        )  # fmt: skip
        d_x_ = None if d_x is None else d_x.transpose(0, 1)
        form.ready = surround.backward(
            form.kernel, arguments, x_, w_, form.weight_count, d_x_, d_w, d_r, d_bias, d_parameters
        )
    form.ready.again(
        x, w, d_x, d_w, d_r, d_bias, d_parameters, r, parameters, initial, states, saved, d_h,
        d_last, None, d_initial, None,
    )  # fmt: skip
    return d_x, d_w, d_r, d_bias, d_parameters if need_parameters else None, d_initial


def _by_operator(
    kind: Kind, inputs: Inputs, saved: Sequence[OptionalTensor], need: Sequence[bool]
) -> tuple[OptionalTensor, ...]:
    """`backward` by flashrnn::layer_backward; saved: states, what was saved, d_h and d_last."""
    x, w, r, _, parameters, initial = inputs.layer(kind)
    run = torch.ops.flashrnn.layer_backward.default
    grads = run(x, w, r, parameters, initial, *saved, list(need), *kind.rest())
    d_x, d_w, d_r, d_bias, d_parameters, d_initial = (
        g if n else None for g, n in zip(grads, need, strict=True)
    )
    return (
        None if d_x is None else d_x.transpose(0, 1),
        None if d_w is None else d_w.flatten(0, 2),
        None if d_r is None else d_r.flatten(0, 2),
        None if d_bias is None else d_bias.flatten(),
        None if d_parameters is None else d_parameters.flatten(1),
        None if d_initial is None else d_initial.flatten(2),
    )


def _cotangents(
    d_h: OptionalTensor, d_last: OptionalTensor, dims: Dims
) -> tuple[OptionalTensor, OptionalTensor]:
    """As the kernels of layers take them."""
    d_h = None if d_h is None else _steps(d_h.unsqueeze(0), dims)[0]
    return d_h, None if d_last is None else _ends(d_last, dims)


def _steps(x: Tensor, dims: Dims) -> Tensor:
    """[S, T, B, N * D] as [S, B, T, N, D]."""
    return x.reshape(*x.shape[:3], dims.N, dims.D).transpose(1, 2)


def _ends(x: Tensor, dims: Dims) -> Tensor:
    """[S, 1, B, N * D] as [S, B, 1, N, D]."""
    return x.view(-1, dims.B, 1, dims.N, dims.D)
