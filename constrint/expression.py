"""Integer expressions: variables, constants and the operations on them.

One node type carries them all: ``op`` says what it does, ``args`` on what. Whatever consumes an
expression (the scalar evaluator, the column evaluator, interval arithmetic, the printer, CP-SAT)
is a table over the same closed set of operations:

    const var neg + - * / // cdiv % ** min max abs if

``/`` is the exact rational quotient, ``//`` and ``%`` are Python's floor division and remainder,
``if`` takes a constraint and two expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Union

import numpy as np

from constrint.errors import OperandError

if TYPE_CHECKING:
    from constrint.constraint import Constraint
    from constrint.domain import Domain

Operand = Union["Expression", int]


class Expression:
    """An integer expression over variables; comparing it gives a `Constraint`."""

    __slots__ = ("_found", "args", "op")
    __array_ufunc__ = None  # numpy scalars on the left defer to the reflected operators

    def __init__(self, op: str, *args: Any) -> None:
        self.op = op
        self.args = args
        self._found: tuple[Variable, ...] | None = None

    __hash__ = object.__hash__

    def __add__(self, other: Operand) -> Expression:
        return Expression("+", self, expression(other, "+"))

    def __radd__(self, other: Operand) -> Expression:
        return Expression("+", expression(other, "+"), self)

    def __sub__(self, other: Operand) -> Expression:
        return Expression("-", self, expression(other, "-"))

    def __rsub__(self, other: Operand) -> Expression:
        return Expression("-", expression(other, "-"), self)

    def __mul__(self, other: Operand) -> Expression:
        return Expression("*", self, expression(other, "*"))

    def __rmul__(self, other: Operand) -> Expression:
        return Expression("*", expression(other, "*"), self)

    def __truediv__(self, other: Operand) -> Expression:
        return Expression("/", self, expression(other, "/"))

    def __rtruediv__(self, other: Operand) -> Expression:
        return Expression("/", expression(other, "/"), self)

    def __floordiv__(self, other: Operand) -> Expression:
        return Expression("//", self, expression(other, "//"))

    def __rfloordiv__(self, other: Operand) -> Expression:
        return Expression("//", expression(other, "//"), self)

    def __mod__(self, other: Operand) -> Expression:
        return Expression("%", self, expression(other, "%"))

    def __rmod__(self, other: Operand) -> Expression:
        return Expression("%", expression(other, "%"), self)

    def __pow__(self, other: Operand) -> Expression:
        return _power(self, expression(other, "**"))

    def __rpow__(self, other: Operand) -> Expression:
        return _power(expression(other, "**"), self)

    def __neg__(self) -> Expression:
        return Expression("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return Expression("abs", self)

    def __eq__(self, other: object) -> Constraint:  # type: ignore[override]
        return _compare("==", self, other)

    def __ne__(self, other: object) -> Constraint:  # type: ignore[override]
        return _compare("!=", self, other)

    def __lt__(self, other: Operand) -> Constraint:
        return _compare("<", self, other)

    def __le__(self, other: Operand) -> Constraint:
        return _compare("<=", self, other)

    def __gt__(self, other: Operand) -> Constraint:
        return _compare(">", self, other)

    def __ge__(self, other: Operand) -> Constraint:
        return _compare(">=", self, other)

    def divides(self, other: Operand) -> Constraint:
        """``self`` divides ``other``: not zero, and ``other % self == 0``."""
        from constrint.constraint import Constraint

        return Constraint("divides", self, expression(other, "divides"))

    def __bool__(self) -> bool:
        from constrint.tracing import decide

        return decide(self != 0, f"the expression `{self}`")

    def __iter__(self) -> NoReturn:
        raise OperandError(f"the expression `{self}` is one integer, not a sequence")

    def variables(self) -> tuple[Variable, ...]:
        """The variables that occur, each once, in order of occurrence."""
        if self._found is None:
            found: dict[Variable, None] = {}
            for arg in self.args:
                if not isinstance(arg, int):
                    found.update(dict.fromkeys(arg.variables()))
            self._found = tuple(found)
        return self._found

    def __str__(self) -> str:
        from constrint.printing import expression_text

        return expression_text(self)

    def __repr__(self) -> str:
        return f"<{self}>"


class Variable(Expression):
    """A named integer with a finite domain. Models make them: ``model.int_var(name, domain)``."""

    __slots__ = ("domain", "name")

    def __init__(self, name: str, domain: Domain) -> None:
        super().__init__("var")
        self.name = name
        self.domain = domain
        self._found = (self,)


def expression(value: object, where: str) -> Expression:
    """``value`` as an expression; anything but an integer or an expression is an error."""
    if isinstance(value, Expression):
        return value
    if type(value) is int:
        return Expression("const", value)
    if isinstance(value, np.integer | int) and not isinstance(value, bool):
        return Expression("const", int(value))
    if isinstance(value, bool | np.bool_):
        raise OperandError(f"`{where}` got {value!r}: booleans are not integers here; write 0 or 1")
    if isinstance(value, float | np.floating):
        raise OperandError(
            f"`{where}` got the float {value!r}: constrint is exact; write an integer, "
            "or a quotient of two as expression / integer"
        )
    from constrint.constraint import Constraint

    if isinstance(value, Constraint):
        raise OperandError(
            f"`{where}` got the constraint `{value}` where an integer is expected: "
            "write either(constraint, 1, 0) to count it"
        )
    raise OperandError(f"`{where}` got {value!r}, which is neither an integer nor an expression")


def has_quotient(node: Expression) -> bool:
    """Whether an exact quotient occurs, so that the value need not be an integer."""
    if node.op == "/":
        return True
    for arg in node.args:  # noqa: SIM110 (`any` of a generator costs a call per operand)
        if isinstance(arg, Expression) and has_quotient(arg):
            return True
    return False


def can_be_undefined(node: Expression) -> bool:
    """Whether an operation occurs that some operands leave without a value."""
    if node.op in {"//", "%", "cdiv", "**", "/", "if"}:
        return True
    for arg in node.args:  # noqa: SIM110 (`any` of a generator costs a call per operand)
        if isinstance(arg, Expression) and can_be_undefined(arg):
            return True
    return False


def substituted(node: Any, choice: Mapping[Variable, int]) -> Any:
    """A copy of an expression or constraint with constants in place of some variables."""
    if isinstance(node, Variable):
        return Expression("const", choice[node]) if node in choice else node
    if isinstance(node, tuple):
        return tuple(substituted(part, choice) for part in node)
    if not hasattr(node, "args"):
        return node
    return type(node)(node.op, *(substituted(arg, choice) for arg in node.args))


def _power(base: Expression, exponent: Expression) -> Expression:
    if has_quotient(exponent):
        raise OperandError(
            f"the exponent `{exponent}` holds a quotient: exponents are integers; use // instead"
        )
    power = Expression("**", base, exponent)
    from constrint.intervals import bounds

    # Powers that no machine could hold are refused where they are stated.
    spans = {v: (v.domain.low, v.domain.high) for v in power.variables() if len(v.domain)}
    if len(spans) == len(power.variables()) and not has_quotient(base):
        bounds(power, spans)
    return power


def _compare(op: str, left: Expression, right: object) -> Constraint:
    from constrint.constraint import Constraint

    return Constraint(op, left, expression(right, op))


def cdiv(a: Operand, b: Operand) -> Expression:
    """``a / b`` rounded up."""
    return Expression("cdiv", expression(a, "cdiv"), expression(b, "cdiv"))


def smallest_of(*terms: Operand) -> Expression:
    """The least of the terms (``min`` is taken by Python, whose own needs truth values)."""
    return _fold("min", terms)


def largest_of(*terms: Operand) -> Expression:
    """The greatest of the terms."""
    return _fold("max", terms)


def total(terms: Any) -> Expression:
    """The sum of a list of expressions; of an empty list, 0."""
    listed = list(terms)
    return _fold("+", listed) if listed else Expression("const", 0)


def product(terms: Any) -> Expression:
    """The product of a list of expressions; of an empty list, 1."""
    listed = list(terms)
    return _fold("*", listed) if listed else Expression("const", 1)


def either(condition: Constraint, then: Operand, otherwise: Operand) -> Expression:
    """``then`` where ``condition`` holds and ``otherwise`` where it does not."""
    from constrint.constraint import constraint

    return Expression(
        "if",
        constraint(condition, "either"),
        expression(then, "either"),
        expression(otherwise, "either"),
    )


def _fold(op: str, terms: Any) -> Expression:
    listed = [expression(term, op) for term in terms]
    if not listed:
        raise OperandError(f"`{op}` of nothing: give at least one expression")
    result = listed[0]
    for term in listed[1:]:
        result = Expression(op, result, term)
    return result
