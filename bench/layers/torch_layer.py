"""A layer in torch as a contender: leaves that take gradients, inference without a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.layers.problem import Contender, Kind, Problem, Results

Tensor = torch.Tensor
Gradients = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _themselves(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return gradients


@dataclass(frozen=True)
class TorchLayer:
    """One implementation with its own copy of the weights.

    run: the problem's inputs -> h. leaves: the tensors that take gradients. named: from the leaves'
    gradients to those of the problem's weights.
    """

    label: str
    run: Callable[[Tensor], Tensor]
    leaves: dict[str, Tensor]
    named: Gradients = field(default=_themselves)

    def contender(self, problem: Problem, kind: Kind) -> Contender:
        """This layer in such a call. Gradients are fresh on every call, as after zero_grad."""
        inputs = problem.inputs.clone().requires_grad_(kind.d_inputs)
        leaves = list(self.leaves.values())

        def infer() -> Tensor:
            with torch.no_grad():
                return self.run(inputs)

        def train() -> Tensor:
            for leaf in (inputs, *leaves):
                leaf.grad = None
            h = self.run(inputs)
            h.backward(problem.d_h)
            return h

        def read(h: Tensor) -> Results:
            results = {"h": h.detach()}
            if kind.d_weights:
                got = {n: leaf.grad for n, leaf in self.leaves.items() if leaf.grad is not None}
                results |= {f"d_{name}": grad for name, grad in self.named(got).items()}
            if inputs.grad is not None:
                results[f"d_{problem.input_name}"] = inputs.grad
            return results

        return Contender(self.label, train if kind.d_weights else infer, read)


def leaf(x: Tensor) -> Tensor:
    """A copy that takes gradients."""
    return x.clone().requires_grad_()
