"""What is compared: one layer's inputs and weights, and the two computations that judge the others.

Every implementation gets the same tensors and returns the same results by name: h [T, B, N * D],
and gradients of the inputs and of the weights, each with the elements of the problem's own tensor
in that order, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.reference import reference

Tensor = torch.Tensor
Results = dict[str, Tensor]

SEED = 0


@dataclass(frozen=True)
class Kind:
    """What a call computes beside h: gradients of the weights, and of the inputs too."""

    label: str
    d_weights: bool
    d_inputs: bool


FORWARD = Kind("forward", False, False)
FIRST_LAYER = Kind("forward+backward, weights", True, False)
INNER_LAYER = Kind("forward+backward, weights and x", True, True)
KINDS = {kind.label: kind for kind in (FORWARD, FIRST_LAYER, INNER_LAYER)}


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to run its case.

    call: compute everything, in the implementation's own types, and return it; read: the results
    of one call by name. Only the first is timed.
    """

    label: str
    call: Callable[[], Any]
    read: Callable[[Any], Results] = field(default=lambda results: results)


@dataclass(frozen=True)
class Subject:
    """A cell in so many heads.

    owns_product: whether a layer's input product is a part of the call (x comes in), or the
    products come in. Where torch has a module for the cell it is, since the module owns it too.
    """

    cell: Cell
    heads: int
    owns_product: bool

    @property
    def label(self) -> str:
        heads = f", {self.heads} heads" if self.heads > 1 else ""
        return f"{self.cell.name}{heads}"


@dataclass(frozen=True, eq=False)
class Problem:
    """Random inputs and weights of a layer as wide as its input.

    inputs: x [T, B, I], I = N * D, or Wx [T, B, G_w, N, D] where the product is no part of it.
    weights: W [G_w, N, D, I] unless it is not, R [G_r, N, D, P] or [G_r, N, D], b [G, N, D], and
    parameters [K, N, D] of a cell that declares some. d_h [T, B, N * D]: the cotangent of h.
    """

    subject: Subject
    dims: Dims
    dtype: Dtype
    inputs: Tensor
    weights: dict[str, Tensor]
    d_h: Tensor

    @property
    def cell(self) -> Cell:
        return self.subject.cell

    @property
    def input_name(self) -> str:
        return "x" if self.subject.owns_product else "Wx"


def problem_of(subject: Subject, dims: Dims, dtype: Dtype) -> Problem:
    """The problem, the same one on every call. Weights are uniform in ± (N * D) ** -0.5."""
    cell, generator = subject.cell, torch.Generator().manual_seed(SEED)
    N, D, width = dims.N, dims.D, dims.hidden_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype.torch)

    def uniform(*shape: int) -> Tensor:
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (x * 2 - 1).mul(width**-0.5).to(dtype.torch)

    weights = {}
    if subject.owns_product:
        weights["W"] = uniform(len(cell.input), N, D, width)
        inputs = normal(dims.T, dims.B, width)
    else:
        inputs = normal(dims.T, dims.B, len(cell.input), N, D)
    weights["R"] = uniform(len(cell.recurrent), N, D, *((D,) if cell.recurrence == DENSE else ()))
    weights["b"] = uniform(len(cell.gates), N, D)
    if cell.parameters:
        weights["parameters"] = uniform(len(cell.parameters), N, D)
    return Problem(subject, dims, dtype, inputs, weights, normal(dims.T, dims.B, width))


def flops(subject: Subject, dims: Dims, kind: Kind) -> int:
    """Operations of the products: two per multiply-add; the element-wise part is not counted."""
    cell, rows = subject.cell, dims.B * dims.T
    recurrent = len(cell.product_gates) * dims.N * dims.D * dims.D
    inputs = len(cell.input) * dims.hidden_size**2 if subject.owns_product else 0
    forward = 2 * rows * (recurrent + inputs)
    if not kind.d_weights:
        return forward
    # backward: of h and R as much as forward each; of W too, of x only where it is asked for
    backward = 2 * rows * (2 * recurrent + inputs * (2 if kind.d_inputs else 1))
    return forward + backward


def traffic(subject: Subject, dims: Dims, kind: Kind, item: int) -> int:
    """Bytes that a core has to move where R is read again in every step, everything else once."""
    cell, rows, width = subject.cell, dims.B * dims.T, dims.hidden_size
    dense = cell.recurrence == DENSE
    recurrent = len(cell.recurrent) * dims.N * dims.D * (dims.D if dense else 1) * dims.T
    inputs = rows * width * (1 if subject.owns_product else len(cell.input))
    once = len(cell.input) * width**2 if subject.owns_product else 0
    passes = 2 if kind.d_weights else 1
    return item * (passes * (recurrent + once + inputs) + rows * width * (3 if passes == 2 else 1))


def judge(problem: Problem, dtype: torch.dtype) -> Results:
    """Every result by the reference implementation in this type, gradients by torch's autograd."""
    inputs = problem.inputs.to(dtype, copy=True).requires_grad_()
    weights = {name: w.to(dtype, copy=True).requires_grad_() for name, w in problem.weights.items()}
    wx = inputs
    if "W" in weights:
        W = weights["W"]
        wx = (inputs @ W.flatten(0, 2).t()).unflatten(-1, W.shape[:3])
    states, _ = reference(
        wx.transpose(0, 1), weights["R"], weights["b"], None, problem.cell,
        weights.get("parameters"),
    )  # fmt: skip
    h = states[0].transpose(0, 1).flatten(2)
    leaves = {problem.input_name: inputs, **weights}
    gradients = torch.autograd.grad(h, list(leaves.values()), problem.d_h.to(dtype))
    named = {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}
    return {"h": h.detach(), **named}


def wanted(problem: Problem, kind: Kind) -> set[str]:
    """The names of the results of such a call."""
    names = {"h"}
    if kind.d_weights:
        names |= {f"d_{name}" for name in problem.weights}
    if kind.d_inputs:
        names.add(f"d_{problem.input_name}")
    return names
