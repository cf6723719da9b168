"""Expression nodes: immutable, interned, built by ordinary operators.

Two expressions that are written alike are one object, so common subexpressions need no pass of
their own, and identity is equality. The grammar:

    expression := constant(float) | input(kind, name) | op(expression, ...)
                | where(condition, expression, expression)
    condition  := equal | less | less_equal of two expressions

`kind` says where an input comes from: gate, state, parameter, recurrent (element-wise weights);
in derivatives also new_state, saved and cotangent.
"""

from __future__ import annotations

import itertools
import math
import numbers
import weakref
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Union

from flashrnn.errors import CellError

Operand = Union["Expression", float, int]

CONSTANT = "constant"
INPUT = "input"
CONDITIONS = frozenset({"equal", "less", "less_equal"})

# Whether a cell's function is being called on symbols: there `==` is a mistake, elsewhere identity.
tracing: ContextVar[bool] = ContextVar("tracing", default=False)

_interned: weakref.WeakValueDictionary[tuple[object, ...], Expression] = (
    weakref.WeakValueDictionary()
)
_serial = itertools.count()


class Expression:
    """A node. Compare with `is`; in a cell use `equal(a, b)`, `a < b` and `where`."""

    __slots__ = ("__weakref__", "arguments", "kind", "name", "op", "serial", "value")
    __array_ufunc__ = None  # a NumPy scalar times an expression is ours to compute

    op: str
    arguments: tuple[Expression, ...]
    kind: str
    name: str
    value: float
    serial: int

    def __add__(self, other: Operand) -> Expression:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Expression:
        return apply("add", other, self)

    def __sub__(self, other: Operand) -> Expression:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Expression:
        return apply("sub", other, self)

    def __mul__(self, other: Operand) -> Expression:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Expression:
        return apply("mul", other, self)

    def __truediv__(self, other: Operand) -> Expression:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expression:
        return apply("div", other, self)

    def __neg__(self) -> Expression:
        return apply("neg", self)

    def __lt__(self, other: Operand) -> Expression:
        return apply("less", self, other)

    def __le__(self, other: Operand) -> Expression:
        return apply("less_equal", self, other)

    def __gt__(self, other: Operand) -> Expression:
        return apply("less", other, self)

    def __ge__(self, other: Operand) -> Expression:
        return apply("less_equal", other, self)

    def __bool__(self) -> bool:
        raise CellError(
            "an expression has no truth value while a cell is traced: "
            "write where(condition, a, b) instead of `if`, `and` or `or`, equal(a, b) for ==, "
            "maximum(a, b) and minimum(a, b) for max and min",
        )

    def __eq__(self, other: object) -> bool:
        if tracing.get():
            raise CellError("a comparison for equality is written equal(a, b) in a cell, not ==")
        return self is other

    __hash__ = object.__hash__

    @property
    def is_condition(self) -> bool:
        """Whether the value is true or false, which only `where` takes."""
        return self.op in CONDITIONS

    def __pow__(self, exponent: int) -> Expression:
        if not isinstance(exponent, int) or not 1 <= exponent <= 4:
            raise CellError(f"only powers 1 to 4 are supported in a cell, got {exponent!r}")
        product = self
        for _ in range(exponent - 1):
            product = product * self
        return product

    def __repr__(self) -> str:
        """As a cell would write it: g.f gates, s.c states, p.w parameters, new.c new states."""
        return _text(self, 0, DEEPEST)


def _text(node: Expression, rank: int, depth: int) -> str:
    """The node as an operand of an operation of that rank, in parentheses where it needs them."""
    if node.op == CONSTANT:
        return f"{node.value:g}"
    if node.op == INPUT:
        return f"{_LETTERS.get(node.kind, node.kind)}.{node.name}"
    if depth == 0:
        return "…"
    if node.op not in _SIGNS:
        return f"{node.op}({', '.join(_text(a, 0, depth - 1) for a in node.arguments)})"
    sign, own = _SIGNS[node.op]
    # the second operand of - and / binds more closely than the first
    operands = [_text(a, own + (k > 0), depth - 1) for k, a in enumerate(node.arguments)]
    text = f" {sign} ".join(operands) if len(operands) > 1 else sign + operands[0]
    return f"({text})" if own < rank else text


# Operations within operations that are written out: a shared operand may stand in many places.
DEEPEST = 8
_SIGNS = {
    "equal": ("==", 0), "less": ("<", 0), "less_equal": ("<=", 0), "add": ("+", 1),
    "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "neg": ("-", 3),
}  # fmt: skip
_LETTERS = {
    "gate": "g", "state": "s", "parameter": "p", "recurrent": "R", "new_state": "new",
    "cotangent": "d_new",
}  # fmt: skip


def _intern(
    op: str, arguments: tuple[Expression, ...], kind: str, name: str, value: float
) -> Expression:
    # -0.0 == 0.0 but they are different constants; NaN is not equal to itself
    number = (value, math.copysign(1.0, value)) if op == CONSTANT else 0
    key = (op, tuple(a.serial for a in arguments), kind, name, number)
    node = _interned.get(key)
    if node is None:
        node = Expression()
        node.op, node.arguments, node.kind, node.name, node.value = op, arguments, kind, name, value
        node.serial = next(_serial)
        _interned[key] = node
    return node


def constant(value: float) -> Expression:
    """A literal number."""
    if math.isnan(value):
        raise CellError("a cell's constant is NaN")
    return _intern(CONSTANT, (), "", "", float(value))


def leaf(kind: str, name: str) -> Expression:
    """A value that comes from outside the expression."""
    return _intern(INPUT, (), kind, name, 0.0)


def apply(op: str, *operands: Operand) -> Expression:
    """`op` of the operands; numbers become constants. Names and arities: `flashrnn.ir.ops`."""
    return _intern(op, tuple(_lift(x) for x in operands), "", "", 0.0)


def select(condition: object, x: Operand, y: Operand) -> Expression:
    """x where the condition holds, else y."""
    if not isinstance(condition, Expression) or not condition.is_condition:
        raise CellError(
            f"where() needs a condition, got {condition!r}; "
            "conditions are equal(a, b), a < b, a <= b, a > b, a >= b"
        )
    return _intern("where", (condition, _lift(x), _lift(y)), "", "", 0.0)


def _lift(x: object) -> Expression:
    if isinstance(x, Expression):
        if x.is_condition:
            raise CellError(f"the condition {x!r} is used as a number; use where({x!r}, a, b)")
        return x
    if isinstance(x, bool) or not isinstance(x, numbers.Real):
        raise CellError(f"a cell computes with gates, states, parameters and numbers, got {x!r}")
    return constant(float(x))


def walk(roots: Iterable[Expression]) -> Iterator[Expression]:
    """Every node below the roots once, arguments before their users."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif node.serial not in seen:
            seen.add(node.serial)
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.arguments))


def substitute(
    roots: Iterable[Expression], replacement: dict[Expression, Expression]
) -> list[Expression]:
    """The roots with nodes replaced, wherever they occur."""
    roots = list(roots)
    done = dict(replacement)
    for node in walk(roots):
        if node not in done:
            done[node] = rebuild(node, tuple(done[a] for a in node.arguments))
    return [done[root] for root in roots]


def rebuild(node: Expression, arguments: tuple[Expression, ...]) -> Expression:
    """The same operation on other arguments."""
    return _intern(node.op, arguments, node.kind, node.name, node.value)
