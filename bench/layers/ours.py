"""This library's layer as a contender: the entry point that owns the input product, or not."""

from __future__ import annotations

import torch

from bench.layers.problem import Contender, Kind, Problem
from bench.layers.torch_layer import TorchLayer, leaf
from flashrnn import flashrnn, layer

LABEL = "flashrnn"

Tensor = torch.Tensor


def contender(problem: Problem, kind: Kind) -> Contender:
    """One operator for the whole layer, or for the recurrence where the products come in."""
    leaves = {name: leaf(w) for name, w in problem.weights.items()}
    R, b, parameters = leaves["R"], leaves["b"], leaves.get("parameters")

    def whole(x: Tensor) -> Tensor:
        W = leaves["W"]
        h, _ = layer(x.transpose(0, 1), W, R, b, None, problem.cell, parameters)
        return h.transpose(0, 1).flatten(2)

    def recurrence(wx: Tensor) -> Tensor:
        backend = "triton" if wx.is_cuda else "cpu"
        states, _ = flashrnn(wx.transpose(0, 1), R, b, None, problem.cell, backend, parameters)
        return states[0].transpose(0, 1).flatten(2)

    run = whole if problem.subject.owns_product else recurrence
    return TorchLayer(LABEL, run, leaves).contender(problem, kind)
