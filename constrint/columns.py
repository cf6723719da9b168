"""Expressions and constraints over NumPy columns: one entry per assignment.

Interval arithmetic runs beside the columns: wherever a part of an expression could leave int64,
that part is computed on Python's integers (columns of objects), so nothing ever overflows.
Variables may be plain ints, and columns of different shapes broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from constrint import intervals
from constrint.constraint import COMPARE, NEGATED, Constraint
from constrint.expression import Expression, Variable
from constrint.lower import conjunction, normal

Array = npt.NDArray[Any]
Column = Any  # an int, or an array of int64 or of Python's integers
Truth = Any  # a bool, or an array of them
Entry = tuple[Column, int, int]
Environment = Mapping[Variable, Entry]
Result = tuple[Column, int, int, Truth]  # values, bounds, where they are defined (True: everywhere)

WIDE = 2**62


def values(node: Expression, at: Environment) -> Result:  # noqa: PLR0911 (one return per operation)
    """The values of ``node``, their bounds, and where they are defined."""
    op, args = node.op, node.args
    if op == "var":
        return *at[node], True  # type: ignore[index]
    if op == "const":
        return args[0], args[0], args[0], True
    if op == "if":
        return _choose(args, at)
    if len(args) == 1:
        a, low, high, defined = values(args[0], at)
        low, high = intervals.OPERATIONS[op]((low, high))
        return _UNARY[op](a), low, high, defined
    a, a_low, a_high, a_defined = values(args[0], at)
    b, b_low, b_high, b_defined = values(args[1], at)
    defined = a_defined if b_defined is True else a_defined & b_defined
    if op in _PARTIAL:
        b, allowed = _PARTIAL[op](b, b_low, b_high)
        defined = defined if allowed is True else defined & allowed
    low, high = intervals.OPERATIONS[op]((a_low, a_high), (b_low, b_high))
    if type(a) is int and type(b) is int:
        return _BINARY[op](a, b), low, high, defined
    if min(a_low, b_low, low) < -WIDE or max(a_high, b_high, high) > WIDE:
        result = _BINARY[op](_objects(a), _objects(b))
        if low >= -WIDE and high <= WIDE:
            # Entries that are not defined may lie anywhere; they are never looked at.
            result = (result if defined is True else np.where(defined, result, low)).astype(
                np.int64
            )
        return result, low, high, defined
    return _BINARY[op](a, b), low, high, defined


def truth(node: Constraint, at: Environment) -> Truth:  # noqa: PLR0911 (one return per operation)
    """Where the constraint, in the form of `lower.normal`, is defined and holds."""
    op, args = node.op, node.args
    if op in NEGATED:
        a, a_low, a_high, a_defined = values(args[0], at)
        b, b_low, b_high, b_defined = values(args[1], at)
        defined = a_defined if b_defined is True else a_defined & b_defined
        decided = _decided(op, a_low, a_high, b_low, b_high)
        held = COMPARE[op](a, b) if decided is None else decided
        return held if defined is True else held & defined
    if op == "and":
        return truth(args[0], at) & truth(args[1], at)
    if op == "or":
        return truth(args[0], at) | truth(args[1], at)
    if op in {"true", "false"}:
        return op == "true"
    if op in {"in", "not in"}:
        return _member(args, at, op == "in")
    if op in {"table", "not table"}:
        return _table(args, at, op == "table")
    return _call(args, at, op == "call")


def _decided(op: str, a_low: int, a_high: int, b_low: int, b_high: int) -> bool | None:
    """What the bounds alone say of a comparison."""
    if op in {">", ">="}:
        a_low, a_high, b_low, b_high = b_low, b_high, a_low, a_high
        op = "<" if op == ">" else "<="
    if op == "<":
        return True if a_high < b_low else (False if a_low >= b_high else None)
    if op == "<=":
        return True if a_high <= b_low else (False if a_low > b_high else None)
    if a_high < b_low or b_high < a_low:
        return op == "!="
    if a_low == a_high == b_low == b_high:
        return op == "=="
    return None


def _objects(a: Column) -> Column:
    return a if type(a) is int else a.astype(object)


def _choose(args: tuple[Any, ...], at: Environment) -> Result:
    held = truth(conjunction(normal(args[0])), at)
    failed = truth(conjunction(normal(args[0], False)), at)
    a, a_low, a_high, a_defined = values(args[1], at)
    b, b_low, b_high, b_defined = values(args[2], at)
    low, high = min(a_low, b_low), max(a_high, b_high)
    defined = (held & a_defined) | (failed & b_defined)
    if type(a) is int and type(b) is int and type(held) is bool:
        return (a if held else b), low, high, defined
    if low < -WIDE or high > WIDE:
        a, b = _objects(a), _objects(b)
        a, b = (np.array(x, dtype=object) if type(x) is int else x for x in (a, b))
    return np.where(held, a, b), low, high, defined


def _nonzero(b: Column, low: int, high: int) -> tuple[Column, Truth]:
    if low > 0 or high < 0:
        return b, True
    if type(b) is int:
        return (b, True) if b else (1, False)
    allowed = b != 0
    return np.where(allowed, b, 1), allowed


def _nonnegative(b: Column, low: int, high: int) -> tuple[Column, Truth]:
    if low >= 0:
        return b, True
    if type(b) is int:
        return (b, True) if b >= 0 else (0, False)
    allowed = b >= 0
    return np.where(allowed, b, 0), allowed


def _member(args: tuple[Any, ...], at: Environment, wanted: bool) -> Truth:
    a, low, high, defined = values(args[0], at)
    if type(a) is int:
        held: Truth = (a in args[1]) is wanted
    else:
        held = _is_in(a, [v for v in args[1] if low <= v <= high])
        held = held if wanted else ~held
    return held if defined is True else held & defined


def _is_in(a: Array, listed: list[int]) -> Array:
    if len(listed) > 8 and a.dtype != object:
        return np.isin(a, np.array(listed, dtype=np.int64))
    held = np.zeros(a.shape, dtype=bool)
    for value in listed:
        held |= a == value
    return held


def _table(args: tuple[Any, ...], at: Environment, wanted: bool) -> Truth:
    """Row by row of the table, ranking prefixes so that no code of a prefix can overflow."""
    terms, rows = args
    prefixes = {(): 0}
    code: Column = 0
    found: Truth = True
    defined: Truth = True
    for column, term in enumerate(terms):
        a, _, _, a_defined = values(term, at)
        defined = defined & a_defined
        following = sorted({row[: column + 1] for row in rows})
        next_code: Column = np.zeros(np.broadcast(code, a).shape, dtype=np.int64)
        next_found: Truth = np.zeros(next_code.shape, dtype=bool)
        for rank, row in enumerate(following):
            match = (code == prefixes[row[:-1]]) & (a == row[-1]) & found
            next_code = np.where(match, rank, next_code)
            next_found = next_found | match
        prefixes = {row: rank for rank, row in enumerate(following)}
        code, found = next_code, next_found
    return (found if wanted else ~found) & defined


def _call(args: tuple[Any, ...], at: Environment, wanted: bool) -> Truth:
    function, terms = args
    results = [values(term, at) for term in terms]
    columns = np.broadcast_arrays(*(r[0] for r in results)) if results else []
    defined = np.broadcast_to(
        np.logical_and.reduce(np.broadcast_arrays(*(r[3] for r in results))), columns[0].shape
    )
    held = np.zeros(columns[0].shape, dtype=bool)
    for index in np.ndindex(held.shape):
        if defined[index]:
            try:
                held[index] = bool(function(*(int(c[index]) for c in columns))) is wanted
            except ZeroDivisionError:
                continue
    return held


_PARTIAL: dict[str, Callable[[Column, int, int], tuple[Column, Truth]]] = {
    "//": _nonzero,
    "cdiv": _nonzero,
    "%": _nonzero,
    "**": _nonnegative,
}

_UNARY: dict[str, Callable[[Column], Column]] = {"neg": lambda a: -a, "abs": abs}

_BINARY: dict[str, Callable[[Column, Column], Column]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "cdiv": lambda a, b: -(-a // b),
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "min": lambda a, b: min(a, b) if type(a) is type(b) is int else np.minimum(a, b),
    "max": lambda a, b: max(a, b) if type(a) is type(b) is int else np.maximum(a, b),
}
