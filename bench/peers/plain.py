"""The plain loop: what one writes in torch without a library, for any cell.

A product and some element-wise operations per step. Heads come first, so that a step is one
(batched) product: [B, D] with one head, [N, B, D] with more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.layers.problem import Problem
from bench.layers.torch_layer import leaf
from bench.peers import equations
from flashrnn.ir.cell import DENSE, Cell

Tensor = torch.Tensor
Steps = Callable[[Tensor, tuple[Tensor, ...], dict[str, Tensor], dict[tuple[str, str], Tensor]],
                 tuple[list[Tensor], tuple[Tensor, ...]]]  # fmt: skip


def _maximum(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.maximum(x, y)
    # at a constant the gradient passes where they tie, as the cells define it
    return x.clamp(min=y) if isinstance(x, Tensor) else y.clamp(min=x)


def _minimum(x: Any, y: Any) -> Any:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return torch.minimum(x, y)
    # at a constant the gradient passes where they tie, as the cells define it
    return x.clamp(max=y) if isinstance(x, Tensor) else y.clamp(max=x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "maximum": _maximum,
    "minimum": _minimum,
    "where": torch.where,
    "stop_gradient": torch.Tensor.detach,
}


class PlainLayer:
    """A layer by a plain loop, with its own copy of the weights.

    run(inputs, steps) -> h; `steps` runs some steps: products, states and weights -> (h of each
    step, states).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.leaves = {name: leaf(w) for name, w in problem.weights.items()}

    def run(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All of it: the input product where it is a part, then the loop."""
        cell, dims = self.problem.cell, self.problem.dims
        arrays, named = self._weights()
        wx = self._products(inputs)
        zeros = wx.new_zeros((*wx.shape[1:-1], dims.D))
        outputs, _ = steps(wx, (zeros,) * len(cell.states), arrays, named)
        h = torch.stack(outputs)
        return h if dims.N == 1 else h.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """[..., G, N, D] -> [..., G * D] for one head, [..., N, G * D] for more."""
        x = x.transpose(-3, -2).flatten(-2)
        return x.squeeze(-2) if self.problem.dims.N == 1 else x

    def _products(self, inputs: Tensor) -> Tensor:
        """The input products with the biases of their gates, [T, B, G_w * D] or [T, N, B, …]."""
        cell = self.problem.cell
        b = self.leaves["b"][[cell.gates.index(g) for g in cell.input]]
        if "W" in self.leaves:
            W = self.leaves["W"]
            rows = torch.addmm(b.flatten(), inputs.flatten(0, 1), W.flatten(0, 2).t())
            wx = rows.unflatten(1, W.shape[:3]).unflatten(0, inputs.shape[:2])
        else:
            wx = inputs + b
        wx = self._heads(wx)
        return wx if self.problem.dims.N == 1 else wx.transpose(1, 2).contiguous()

    def _weights(self) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
        """R [P, G_r * D] and the biases that the recurrent product adds; per-unit weights."""
        cell, R, b = self.problem.cell, self.leaves["R"], self.leaves["b"]
        arrays: dict[str, Tensor] = {}
        named: dict[tuple[str, str], Tensor] = {}
        unit = (lambda x: x[0]) if self.problem.dims.N == 1 else (lambda x: x.unsqueeze(1))
        if cell.recurrence == DENSE:
            arrays["R"] = R.permute(1, 3, 0, 2).flatten(2)  # [N, P, G_r * D]
            own = [
                b[cell.gates.index(g)] if g not in cell.input else torch.zeros_like(b[0])
                for g in cell.recurrent
            ]
            arrays["b"] = torch.stack(own, 1).flatten(1)  # [N, G_r * D]
            arrays = {name: unit(x) if name == "b" else x for name, x in arrays.items()}
            if self.problem.dims.N == 1:
                arrays["R"] = arrays["R"][0]
        else:
            named |= {("recurrent", g): unit(R[k]) for k, g in enumerate(cell.recurrent)}
        for k, name in enumerate(cell.parameters):
            named[("parameter", name)] = unit(self.leaves["parameters"][k])
        return arrays, named


def steps(cell: Cell, heads: int) -> Steps:
    """The loop over the products that it is given."""
    step = equations.step(cell, FUNCTIONS)
    product = torch.addmm if heads == 1 else torch.baddbmm
    split = partial(torch.chunk, dim=-1)

    def run(
        wx: Tensor,
        states: tuple[Tensor, ...],
        arrays: dict[str, Tensor],
        named: dict[tuple[str, str], Tensor],
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs = []
        for now in wx.unbind(0):
            gate = equations.gates(cell, now, states[0], arrays, split, product)
            states = step(gate, dict(zip(cell.states, states, strict=True)), named)
            outputs.append(states[0])
        return outputs, states

    return run
