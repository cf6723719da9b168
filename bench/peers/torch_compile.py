"""The plain loop compiled by torch.compile, in pieces of a few steps.

A loop compiled as a whole takes minutes for a few hundred steps; a piece takes seconds, and its
overhead is shared by its steps. Only sequences up to LONGEST take part.
"""

from __future__ import annotations

import torch

from bench.layers.problem import Contender, Kind, Problem
from bench.layers.torch_layer import TorchLayer
from bench.peers import plain

PIECE = 8
LONGEST = 128

Tensor = torch.Tensor


def contender(problem: Problem, kind: Kind, _threads: int) -> Contender | None:
    """The loop of any cell, where the sequence is short."""
    if problem.dims.T > LONGEST:
        return None
    torch._dynamo.reset()  # what other cases compiled
    layer = plain.PlainLayer(problem)
    compiled = torch.compile(plain.steps(problem.cell, problem.dims.N), dynamic=False)

    def steps(
        wx: Tensor,
        states: tuple[Tensor, ...],
        arrays: dict[str, Tensor],
        named: dict[tuple[str, str], Tensor],
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs: list[Tensor] = []
        for piece in wx.split(PIECE):
            some, states = compiled(piece, states, arrays, named)
            outputs += some
        return outputs, states

    loop = TorchLayer("torch.compile", lambda x: layer.run(x, steps), layer.leaves)
    return loop.contender(problem, kind)
