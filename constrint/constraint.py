"""Constraints: comparisons of integer expressions and what combines them.

As with expressions, one node type and a closed set of operations:

    == != < <= > >=  divides  in (expression, values)  table (expressions, rows)
    and or not implies different (expressions)  true false  call (function, expressions)

A constraint holds, does not hold, or is undefined (it divides by zero, or raises to a negative
power). ``and``, ``or`` and ``not`` treat the third value as Kleene's logic does, so an
undefined part never makes a constraint hold through a negation, and ``b == 0 or a % b == 0``
holds for b = 0 as it does in Python. An assignment satisfies a model if all constraints hold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constrint.domain import as_integer
from constrint.errors import ModelError, OperandError
from constrint.expression import Expression, Operand, Variable, expression

if TYPE_CHECKING:
    from constrint.domain import Domain

# Each comparison as Python spells it: for integers, columns, and CP-SAT's expressions alike.
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
COMPARISONS = frozenset(NEGATED)


class Constraint:
    """A condition on variables; ``&``, ``|``, ``~`` and `implies` combine them."""

    __slots__ = ("_found", "args", "op")

    def __init__(self, op: str, *args: Any) -> None:
        self.op = op
        self.args = args
        self._found: tuple[Variable, ...] | None = None

    def __and__(self, other: Constraint | bool) -> Constraint:
        return Constraint("and", self, constraint(other, "&"))

    def __rand__(self, other: Constraint | bool) -> Constraint:
        return Constraint("and", constraint(other, "&"), self)

    def __or__(self, other: Constraint | bool) -> Constraint:
        return Constraint("or", self, constraint(other, "|"))

    def __ror__(self, other: Constraint | bool) -> Constraint:
        return Constraint("or", constraint(other, "|"), self)

    def __invert__(self) -> Constraint:
        return Constraint("not", self)

    def implies(self, other: Constraint | bool) -> Constraint:
        """Wherever ``self`` holds, ``other`` does."""
        return Constraint("implies", self, constraint(other, "implies"))

    def __bool__(self) -> bool:
        from constrint.tracing import decide

        return decide(self, f"the constraint `{self}`")

    def variables(self) -> tuple[Variable, ...]:
        """The variables that occur, each once, in order of occurrence."""
        if self._found is None:
            self._found = tuple(dict.fromkeys(_occurrences(self)))
        return self._found

    def __str__(self) -> str:
        from constrint.printing import constraint_text

        return constraint_text(self)

    def __repr__(self) -> str:
        return f"<{self}>"


def constraint(value: object, where: str) -> Constraint:
    """``value`` as a constraint; Python's True and False are the constant ones."""
    if isinstance(value, Constraint):
        return value
    if isinstance(value, bool | np.bool_):
        return Constraint("true" if value else "false")
    if isinstance(value, Expression):
        raise OperandError(
            f"`{where}` got the integer expression `{value}` where a constraint is expected: "
            f"write `{value} != 0`"
        )
    raise OperandError(f"`{where}` got {value!r}, which is not a constraint")


def member(value: Operand, values: Iterable[int] | Domain) -> Constraint:
    """``value`` is one of ``values``."""
    listed = tuple(sorted({as_integer(v, "member") for v in values}))
    return Constraint("in", expression(value, "member"), listed)


def table(expressions: Sequence[Operand], rows: Iterable[Sequence[int]]) -> Constraint:
    """The expressions take the values of one of the rows, side by side."""
    columns = tuple(expression(e, "table") for e in expressions)
    listed = []
    for row in rows:
        if len(row) != len(columns):
            raise ModelError(f"the row {tuple(row)} has {len(row)} values for {len(columns)} terms")
        listed.append(tuple(as_integer(v, "table") for v in row))
    if not columns:
        raise ModelError("a table needs at least one expression")
    return Constraint("table", columns, tuple(sorted(set(listed))))


def all_different(expressions: Iterable[Operand]) -> Constraint:
    """No two of the expressions are equal."""
    return Constraint("different", tuple(expression(e, "all_different") for e in expressions))


def all_of(constraints: Iterable[Constraint | bool]) -> Constraint:
    """All of them hold; of none, true."""
    return _join("and", "true", constraints)


def any_of(constraints: Iterable[Constraint | bool]) -> Constraint:
    """At least one of them holds; of none, false."""
    return _join("or", "false", constraints)


def call(function: Callable[..., object], expressions: Sequence[Expression]) -> Constraint:
    """``function``, an opaque Python predicate, is true of the values of the expressions."""
    return Constraint("call", function, tuple(expressions))


def _join(op: str, empty: str, constraints: Iterable[Constraint | bool]) -> Constraint:
    result: Constraint | None = None
    for part in constraints:
        node = constraint(part, op)
        result = node if result is None else Constraint(op, result, node)
    return Constraint(empty) if result is None else result


def _occurrences(node: Constraint) -> Iterator[Variable]:
    for arg in node.args:
        if isinstance(arg, Expression | Constraint):
            yield from arg.variables()
        elif isinstance(arg, tuple):
            for part in arg:
                if isinstance(part, Expression):
                    yield from part.variables()
