"""The plain loop, run by eager torch."""

from __future__ import annotations

from bench.layers.problem import Contender, Kind, Problem
from bench.layers.torch_layer import TorchLayer
from bench.peers import plain


def contender(problem: Problem, kind: Kind, _threads: int) -> Contender:
    """The loop of any cell."""
    layer, steps = plain.PlainLayer(problem), plain.steps(problem.cell, problem.dims.N)
    loop = TorchLayer("eager loop", lambda x: layer.run(x, steps), layer.leaves)
    return loop.contender(problem, kind)
