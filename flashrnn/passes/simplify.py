"""Identities that keep every rounding, and constant folding.

x * 0 stays (x may be infinite), and nothing is reassociated: the simplified expression computes
the same bits, signed zeros apart. Constants are folded in float64, so in float32 a folded one is
rounded once. Sums and products that differ in the order of two operands become one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, constant, rebuild, walk
from flashrnn.ir.ops import OPS

_COMMUTATIVE = frozenset({"add", "mul", "equal"})


def simplify(roots: Iterable[Expression]) -> list[Expression]:
    """The roots, rewritten bottom up until each node is in its simplest form.

    Of x + y and y + x the one that comes first stands for both, within one call: what belongs
    together is simplified together.
    """
    roots = list(roots)
    done: dict[Expression, Expression] = {}
    first: set[Expression] = set()
    for node in walk(roots):
        rebuilt = rebuild(node, tuple(done[a] for a in node.arguments))
        if node.op in _COMMUTATIVE:
            mirrored = rebuild(rebuilt, rebuilt.arguments[::-1])
            rebuilt = mirrored if mirrored in first else rebuilt
            first.add(rebuilt)
        done[node] = _rewrite(rebuilt)
    return [done[root] for root in roots]


def drop_stop_gradient(roots: Iterable[Expression]) -> list[Expression]:
    """The roots without stop_gradient, which means nothing once they are differentiated."""
    roots = list(roots)
    done: dict[Expression, Expression] = {}
    for node in walk(roots):
        arguments = tuple(done[a] for a in node.arguments)
        done[node] = arguments[0] if node.op == "stop_gradient" else rebuild(node, arguments)
    return [done[root] for root in roots]


def _rewrite(node: Expression) -> Expression:
    if node.op in (CONSTANT, INPUT):
        return node
    if _constant(node) and not node.is_condition:
        return _fold(node)
    rule = _RULES.get(node.op)
    simpler = rule(*node.arguments) if rule else None
    return node if simpler is None else simpler


def _constant(node: Expression) -> bool:
    return all(a.op == CONSTANT for a in node.arguments)


def _value(node: Expression) -> float:
    """What an operation on constants gives."""
    operands = [torch.tensor(a.value, dtype=torch.float64) for a in node.arguments]
    return float(OPS[node.op].value(*operands).item())


def _fold(node: Expression) -> Expression:
    value = _value(node)
    return node if math.isnan(value) else constant(value)


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
        if one.op == "neg":  # outwards, where a sum takes it in
            product = one.arguments[0] * other if one is x else other * one.arguments[0]
            return _rewrite(-_rewrite(product))
    return None


def _div(x: Expression, y: Expression) -> Expression | None:
    if _is(y, 1.0):
        return x
    if x.op == "neg":
        return _rewrite(-_rewrite(x.arguments[0] / y))
    if y.op == CONSTANT and _exact_inverse(y.value):
        return _rewrite(x * (1.0 / y.value))
    return None


def _exact_inverse(value: float) -> bool:
    """Whether 1 / value is exact in every type: a power of two that is far from the ends."""
    fraction, exponent = math.frexp(value)
    return abs(fraction) == 0.5 and abs(exponent) < 100


def _neg(x: Expression) -> Expression | None:
    if x.op == "neg":
        return x.arguments[0]
    if x.op == "sub":
        return _rewrite(x.arguments[1] - x.arguments[0])
    return None


def _same(x: Expression, y: Expression) -> Expression | None:
    return x if x is y else None


def _where(condition: Expression, x: Expression, y: Expression) -> Expression | None:
    if _constant(condition):
        return x if _value(condition) else y
    return _same(x, y)


_RULES: dict[str, Callable[..., Expression | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "where": _where,
    "maximum": _same,
    "minimum": _same,
}
