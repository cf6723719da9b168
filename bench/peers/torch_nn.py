"""torch.nn.LSTM, GRU and RNN. They have two biases and differentiate both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.layers.problem import Contender, Kind, Problem
from bench.layers.torch_layer import TorchLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Module:
    """Which module, and the gates of its two weights in the module's order."""

    make: Callable[..., torch.nn.RNNBase]
    input: tuple[str, ...]
    recurrent: tuple[str, ...]


_IFZO = ("i", "f", "z", "o")
MODULES = {
    "lstm": Module(torch.nn.LSTM, _IFZO, _IFZO),
    "gru": Module(torch.nn.GRU, ("r", "z", "n_in"), ("r", "z", "n_rec")),
    "elman": Module(torch.nn.RNN, ("z",), ("z",)),
    "elman_relu": Module(partial(torch.nn.RNN, nonlinearity="relu"), ("z",), ("z",)),
}


def contender(problem: Problem, kind: Kind, _threads: int) -> Contender | None:
    """The module with the problem's weights; it knows nothing of heads."""
    module = MODULES.get(problem.cell.name)
    if module is None or problem.dims.N > 1 or "W" not in problem.weights:
        return None
    return _layer(problem, module).contender(problem, kind)


def _layer(problem: Problem, module: Module) -> TorchLayer:
    cell, D = problem.cell, problem.dims.D
    like = {"dtype": problem.dtype.torch, "device": problem.inputs.device}
    net = module.make(problem.inputs.shape[2], D, **like)
    held: dict[str, Tensor] = dict(net.named_parameters())
    in_w = [cell.input.index(g) for g in module.input]
    in_r = [cell.recurrent.index(g) for g in module.recurrent]
    b = problem.weights["b"].flatten(1)
    with torch.no_grad():
        held["weight_ih_l0"].copy_(problem.weights["W"].flatten(1, 2)[in_w].flatten(0, 1))
        held["weight_hh_l0"].copy_(problem.weights["R"].flatten(1, 2)[in_r].flatten(0, 1))
        held["bias_ih_l0"].copy_(b[[cell.gates.index(g) for g in module.input]].flatten())
        second = b[[cell.gates.index(g) for g in module.recurrent]]
        for k, gate in enumerate(module.recurrent):
            if gate in module.input:  # the first bias has it
                second[k] = 0
        held["bias_hh_l0"].copy_(second.flatten())

    def named(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        d_w = gradients["weight_ih_l0"].unflatten(0, (-1, D))
        d_r = gradients["weight_hh_l0"].unflatten(0, (-1, D))
        biases = dict(
            zip(module.recurrent, gradients["bias_hh_l0"].unflatten(0, (-1, D)), strict=True)
        ) | dict(zip(module.input, gradients["bias_ih_l0"].unflatten(0, (-1, D)), strict=True))
        return {
            "W": d_w[[module.input.index(g) for g in cell.input]],
            "R": d_r[[module.recurrent.index(g) for g in cell.recurrent]],
            "b": torch.stack([biases[g] for g in cell.gates]),
        }

    def run(x: Tensor) -> Tensor:
        h: Tensor = net(x)[0]
        return h

    return TorchLayer(f"torch.nn.{type(net).__name__}", run, held, named)
