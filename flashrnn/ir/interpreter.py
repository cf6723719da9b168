"""The definition of what an expression means: evaluate it with the op table's values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, walk
from flashrnn.ir.ops import OPS

Inputs = Mapping[tuple[str, str], torch.Tensor]


def evaluate(roots: Iterable[Expression], inputs: Inputs) -> list[torch.Tensor]:
    """Values of the roots, as tensors of the inputs' dtype and broadcast shape.

    inputs: a tensor per (kind, name). Differentiable by torch, which makes its autograd an
    independent check of the table's derivatives.
    """
    roots = list(roots)
    like = next(iter(inputs.values()))
    values: dict[Expression, torch.Tensor] = {}
    for node in walk(roots):
        if node.op == CONSTANT:
            values[node] = torch.full((), node.value, dtype=like.dtype, device=like.device)
        elif node.op == INPUT:
            values[node] = inputs[(node.kind, node.name)]
        else:
            values[node] = OPS[node.op].value(*(values[a] for a in node.arguments))
    return [values[root] for root in roots]
