"""Identities that keep every rounding, and constant folding.

x * 0 stays (x may be infinite), and nothing is reassociated: the simplified expression computes
the same bits, signed zeros of x + 0 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, constant, rebuild, walk
from flashrnn.ir.ops import OPS


def simplify(roots: Iterable[Expression]) -> list[Expression]:
    """The roots, rewritten bottom up until each node is in its simplest form."""
    roots = list(roots)
    done: dict[Expression, Expression] = {}
    for node in walk(roots):
        done[node] = _rewrite(rebuild(node, tuple(done[a] for a in node.arguments)))
    return [done[root] for root in roots]


def _rewrite(node: Expression) -> Expression:
    if node.op in (CONSTANT, INPUT):
        return node
    if all(a.op == CONSTANT for a in node.arguments) and not node.is_condition:
        return _fold(node)
    rule = _RULES.get(node.op)
    simpler = rule(*node.arguments) if rule else None
    return node if simpler is None else simpler


def _fold(node: Expression) -> Expression:
    if node.op == "where":
        return node
    operands = [torch.tensor(a.value, dtype=torch.float64) for a in node.arguments]
    return constant(OPS[node.op].value(*operands).item())


def _is(node: Expression, value: float) -> bool:
    return node.op == CONSTANT and node.value == value


def _add(x: Expression, y: Expression) -> Expression | None:
    if _is(x, 0.0):
        return y
    if _is(y, 0.0):
        return x
    if y.op == "neg":
        return _rewrite(x - y.arguments[0])
    if x.op == "neg":
        return _rewrite(y - x.arguments[0])
    return None


def _sub(x: Expression, y: Expression) -> Expression | None:
    if _is(y, 0.0):
        return x
    if _is(x, 0.0):
        return _rewrite(-y)
    if y.op == "neg":
        return _rewrite(x + y.arguments[0])
    return None


def _mul(x: Expression, y: Expression) -> Expression | None:
    for one, other in ((x, y), (y, x)):
        if _is(one, 1.0):
            return other
        if _is(one, -1.0):
            return _rewrite(-other)
    return None


def _div(x: Expression, y: Expression) -> Expression | None:
    return x if _is(y, 1.0) else None


def _neg(x: Expression) -> Expression | None:
    return x.arguments[0] if x.op == "neg" else None


def _where(_condition: Expression, x: Expression, y: Expression) -> Expression | None:
    return x if x is y else None


_RULES: dict[str, Callable[..., Expression | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "where": _where,
}
