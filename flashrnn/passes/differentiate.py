"""Reverse-mode differentiation of expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, walk
from flashrnn.ir.ops import OPS, zero


def differentiate(
    cotangents: Mapping[Expression, Expression], inputs: Sequence[Expression]
) -> list[Expression]:
    """Cotangents of the inputs, given those of the roots.

    cotangents: per root expression, an expression for the loss's derivative with respect to it;
    roots that are one expression must come with their cotangents added. An input that no root
    depends on gets the constant 0.
    """
    wanted = set(inputs)
    order = list(walk(cotangents))
    needed = _ancestors_of(order, wanted)
    total: dict[Expression, Expression] = dict(cotangents)
    for node in reversed(order):
        cotangent = total.get(node)
        if cotangent is None or node.op in (CONSTANT, INPUT):
            continue
        derivatives = OPS[node.op].derivative(node, node.arguments, cotangent)
        for argument, part in zip(node.arguments, derivatives, strict=True):
            if part is not None and argument in needed:
                total[argument] = total[argument] + part if argument in total else part
    return [total.get(x, zero()) for x in inputs]


def _ancestors_of(order: list[Expression], wanted: set[Expression]) -> set[Expression]:
    """Nodes on a path from a wanted input to a root; the others need no cotangent."""
    found = set(wanted)
    for node in order:
        if any(a in found for a in node.arguments):
            found.add(node)
    return found
