"""What is compared: one shape and one kind of call, done by every implementation.

What is timed is what is verified: a contender's `call` returns the results that it computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from bench import layers
from bench.errors import Disagreement
from bench.layers import Layer, Weights
from bench.shapes import Suite
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.tolerance import Comparison, compare, worst

Tensor = torch.Tensor
Results = dict[str, Tensor]

SEED = 0


@dataclass(frozen=True)
class Kind:
    """What a call computes beside h: gradients of the weights, and of x too."""

    label: str
    d_weights: bool
    d_x: bool


FORWARD = Kind("forward", False, False)
FIRST_LAYER = Kind("forward+backward, weights", True, False)
INNER_LAYER = Kind("forward+backward, weights and x", True, True)
KINDS = (FORWARD, FIRST_LAYER, INNER_LAYER)


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to run its case once and return the results by name."""

    label: str
    call: Callable[[], Results]


@dataclass(frozen=True)
class Case:
    """One shape, one kind of call.

    eager: the loop, one of the peers, whose error is the measure of what ours may make; exact:
    the same in float64.
    """

    dims: Dims
    dtype: Dtype
    kind: Kind
    ours: Contender
    peers: tuple[Contender, ...]
    eager: Contender
    exact: Contender

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (self.ours, *self.peers)

    @property
    def label(self) -> str:
        return f"{self.dims} {self.dtype.name} {self.kind.label}"


def cases(suite: Suite) -> Iterator[Case]:
    """Every shape with every kind, made one at a time."""
    for dims in suite.shapes:
        for kind in KINDS:
            yield case_of(dims, suite.dtype, kind)


def case_of(dims: Dims, dtype: Dtype, kind: Kind) -> Case:
    """The case with random inputs, the same ones on every call. One head, N = 1."""
    generator = torch.Generator().manual_seed(SEED)
    weights = Weights.random(dims, dtype.torch, generator)
    x = torch.randn(dims.T, dims.B, dims.D, generator=generator, dtype=dtype.torch)
    d_h = torch.randn(dims.T, dims.B, dims.D, generator=generator, dtype=dtype.torch)
    ours, library, eager = (
        _contender(make(weights), kind, x, d_h)
        for make in (layers.fused, layers.library, layers.loop)
    )
    double = layers.loop(weights.to(torch.float64))
    exact = _contender(double, kind, x.double(), d_h.double())
    return Case(dims, dtype, kind, ours, (library, eager), eager, exact)


def _contender(layer: Layer, kind: Kind, x: Tensor, d_h: Tensor) -> Contender:
    def infer() -> Results:
        with torch.no_grad():
            return {"h": layer.run(x)}

    own_x = x.clone().requires_grad_(kind.d_x)
    leaves = {"d_x": own_x, **{f"d_{name}": leaf for name, leaf in layer.leaves.items()}}

    def train() -> Results:
        for leaf in leaves.values():
            leaf.grad = None  # as an optimizer's zero_grad does before each step
        h = layer.run(own_x)
        h.backward(d_h)
        results = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return {"h": h.detach(), **results}

    return Contender(layer.label, train if kind.d_weights else infer)


def verify(case: Case) -> dict[str, Comparison]:
    """Run every contender once; the error of each one's worst result against float64.

    Ours is held to `flashrnn.tolerance`. A peer rounds as it likes (the library's bias gradient
    is beyond that tolerance for long sequences) but has to compute the same thing: half of the
    digits. Raises Disagreement.
    """
    exact, eager = case.exact.call(), case.eager.call()
    found = {}
    for contender in case.contenders:
        got = contender.call()
        if got.keys() != exact.keys():
            only = ", ".join(sorted(got.keys() ^ exact.keys()))
            raise Disagreement(case.label, contender.label, f"not everyone computes {only}")
        comparisons = []
        for name, expected in exact.items():
            compared = compare(name, got[name].reshape(expected.shape), expected, eager[name])
            if contender is not case.ours:
                compared = replace(compared, bound=torch.finfo(case.dtype.torch).eps ** 0.5)
            comparisons.append(compared)
        found[contender.label] = closest = worst(comparisons)
        if not closest.ok:
            raise Disagreement(case.label, contender.label, closest)
    return found
