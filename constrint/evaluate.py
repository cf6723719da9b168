"""What an expression and a constraint mean, one assignment at a time, in exact arithmetic.

This is the definition that everything else is held to: slow, obvious, on Python's integers and
fractions. Solutions are verified with it before they are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from constrint.constraint import COMPARE, Constraint
from constrint.expression import Expression

Number = int | Fraction
Assignment = Mapping[str, int]


class Undefined(ArithmeticError):
    """A division by zero or a power that is no rational integer power."""


def value(node: Expression, at: Assignment) -> Number:
    """The value of ``node``; raises Undefined where it has none."""
    op, args = node.op, node.args
    if op == "const":
        return args[0]  # type: ignore[no-any-return]
    if op == "var":
        return at[node.name]  # type: ignore[attr-defined]
    if op == "if":
        condition = holds(args[0], at)
        if condition is None:
            raise Undefined(str(node))
        return value(args[1] if condition else args[2], at)
    try:
        return reduced(_OPERATIONS[op](*(value(arg, at) for arg in args)))
    except ZeroDivisionError as error:
        raise Undefined(str(node)) from error


def holds(node: Constraint, at: Assignment) -> bool | None:
    """Whether ``node`` holds; None where it is undefined."""
    combine = _CONNECTIVES.get(node.op)
    if combine is not None:
        return combine(*(holds(arg, at) for arg in node.args))
    try:
        return _LEAVES[node.op](at, *node.args)
    except Undefined:
        return None


def reduced(number: Number) -> Number:
    """The number as an int where it is one."""
    if isinstance(number, Fraction) and number.denominator == 1:
        return number.numerator
    return number


def _power(base: Number, exponent: Number) -> Number:
    if exponent < 0 or isinstance(exponent, Fraction):
        raise ZeroDivisionError
    return base**exponent


_OPERATIONS: dict[str, Callable[..., Number]] = {
    "neg": lambda a: -a,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a) / b,
    "//": lambda a, b: a // b,
    "cdiv": lambda a, b: -(-a // b),
    "%": lambda a, b: a % b,
    "**": _power,
    "min": min,
    "max": max,
    "abs": abs,
}


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _not(a: bool | None) -> bool | None:
    return None if a is None else not a


def _or(a: bool | None, b: bool | None) -> bool | None:
    return _not(_and(_not(a), _not(b)))


_CONNECTIVES: dict[str, Callable[..., bool | None]] = {
    "and": _and,
    "or": _or,
    "not": _not,
    "implies": lambda a, b: _or(_not(a), b),
}


def _comparison(op: str) -> Callable[..., bool]:
    compare = COMPARE[op]
    return lambda at, left, right: compare(value(left, at), value(right, at))


def _divides(at: Assignment, divisor: Expression, dividend: Expression) -> bool:
    by = value(divisor, at)
    if by == 0:
        raise Undefined(str(divisor))
    return value(dividend, at) % by == 0


def _different(at: Assignment, terms: tuple[Expression, ...]) -> bool:
    """False if two defined terms are equal, whatever the others are."""
    defined: list[Number] = []
    undefined: Undefined | None = None
    for term in terms:
        try:
            defined.append(value(term, at))
        except Undefined as error:
            undefined = error
    if len(set(defined)) < len(defined):
        return False
    if undefined is not None:
        raise undefined
    return True


def _call(at: Assignment, function: Callable[..., Any], terms: tuple[Expression, ...]) -> bool:
    arguments = [value(term, at) for term in terms]
    try:
        return bool(function(*arguments))
    except ZeroDivisionError as error:
        raise Undefined(str(function)) from error


def _table(at: Assignment, terms: tuple[Expression, ...], rows: tuple[Any, ...]) -> bool:
    return tuple(value(term, at) for term in terms) in rows


_LEAVES: dict[str, Callable[..., bool]] = {
    **{op: _comparison(op) for op in COMPARE},
    "divides": _divides,
    "in": lambda at, term, values: value(term, at) in values,
    "table": _table,
    "different": _different,
    "call": _call,
    "true": lambda at: True,
    "false": lambda at: False,
}
