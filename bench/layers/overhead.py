"""What a call costs beyond its kernels: forward and backward of a tiny problem, in eager mode.

The layer, differentiated by autograd, against the same compiled code called with arguments that
were prepared beforehand. Both include the kernels' own fixed cost, packing R among it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from autotune.measure import Timing, interleave
from bench.errors import Disagreement
from bench.layers.problem import Problem, Subject, problem_of
from bench.layers.torch_layer import leaf
from flashrnn import layer
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.options import NONE
from flashrnn.runtime import launch, surround
from flashrnn.runtime.arguments import unit_weights
from flashrnn.runtime.ready import Ready

Tensor = torch.Tensor
Results = tuple[Tensor, ...]

DIMS = Dims(B=1, T=1, N=1, D=16)
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Overhead:
    """Of one cell: the differentiated call, and its kernels alone."""

    cell: str
    call: Timing
    bare: Timing

    @property
    def seconds(self) -> float:
        return self.call.median - self.bare.median


def measure(cell: Cell, seconds: float) -> Overhead:
    """Measure with one thread, after both were seen to compute the same. Raises Disagreement."""
    problem = problem_of(Subject(cell, 1, owns_product=True), DIMS, FLOAT32)
    call, of_call = _call(problem)
    bare, of_bare = _bare(problem)
    call()
    bare()
    for mine, theirs in zip(of_bare(), of_call(), strict=True):
        if not torch.equal(mine.flatten(), theirs.flatten()):
            raise Disagreement(f"the call overhead of {cell.name}", "the bare kernel", "not equal")
    found = interleave({"call": call, "bare": bare}, seconds=seconds, min_rounds=MIN_ROUNDS)
    return Overhead(cell.name, found["call"], found["bare"])


def _call(problem: Problem) -> tuple[Callable[[], None], Callable[[], Results]]:
    """The differentiated call, and what the last one left."""
    leaves = {name: leaf(w) for name, w in problem.weights.items()}
    x = leaf(problem.inputs.transpose(0, 1))
    every = (x, *leaves.values())
    W, R, b, parameters = leaves["W"], leaves["R"], leaves["b"], leaves.get("parameters")
    d_h = problem.d_h.transpose(0, 1).unflatten(2, (DIMS.N, DIMS.D))
    kept: list[Tensor] = []

    def call() -> None:
        for one in every:
            one.grad = None
        h, _ = layer(x, W, R, b, None, problem.cell, parameters)
        h.backward(d_h)
        kept[:] = (h,)

    def results() -> Results:
        return (kept[0].detach(), *(g for g in (one.grad for one in every) if g is not None))

    return call, results


def _bare(problem: Problem) -> tuple[Callable[[], None], Callable[[], Results]]:
    """The two kernels with what the operators would hand to them, and what the last run left."""
    cell, dims, dtype = problem.cell, DIMS, problem.dtype
    x = problem.inputs.transpose(0, 1).contiguous()
    W, R, b = (problem.weights[name] for name in "WRb")
    parameters = problem.weights.get("parameters")
    S, G = len(cell.states), len(cell.gates)
    units = unit_weights(cell, R, parameters)
    K = 0 if units is None else units.shape[0]
    dense = cell.recurrence == DENSE
    states = torch.empty(S, dims.T, dims.B, dims.N, dims.D).transpose(1, 2)
    saved = torch.empty(launch.saved_shape(cell, dims, dtype))
    last = torch.empty(S, dims.B, 1, dims.N, dims.D)
    d_h = problem.d_h.transpose(0, 1).reshape(1, dims.B, dims.T, dims.N, dims.D)
    d_x, d_w, d_r = torch.empty_like(x), torch.empty_like(W), torch.empty_like(R)
    d_b, d_units = torch.empty(G, dims.N, dims.D), torch.empty(K, dims.N, dims.D)

    forward = launch.kernel_for(cell, FORWARD, x.dtype, dims.B, dims.T, dims.N, dims.D)
    backward = launch.kernel_for(cell, BACKWARD, x.dtype, dims.B, dims.T, dims.N, dims.D)

    def ready() -> tuple[Ready, Ready]:
        there = forward.forward(None, R, b, units, None, states, last, saved, None, NONE)
        back = backward.backward(
            R, units, None, states, saved, d_h, None, None, None, None, None, NONE
        )
        return (
            surround.forward(forward, there, x, W),
            surround.backward(
                backward, back, x, W, K, d_x, d_w, d_r if dense else None, d_b, d_units
            ),
        )

    ready()  # the workspace that they point to grows to what the larger one needs
    there, back = ready()

    def call(_alive: object = (R, b, units, saved, last, d_h)) -> None:  # only pointers to them
        there.run()
        back.run()

    def results() -> Results:
        recurrent = d_r if dense else d_units[: len(cell.recurrent)]
        rest = (d_units[K - len(cell.parameters) :],) if cell.parameters else ()
        return (states[0], d_x, d_w, recurrent, d_b, *rest)

    return call, results
