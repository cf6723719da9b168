"""Bounds of an expression over partial assignments: interval arithmetic on columns.

Parts whose variables all have values are computed; the others lie between bounds, which
`+ - *`, negation, `min` and `max` pass on row by row. Other operations on a part that is not
computed, and all that could leave int64, get the bounds of the whole domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from constrint.columns import WIDE, Column, Environment, values
from constrint.expression import Expression, Variable
from constrint.intervals import Interval, bounds

Span = tuple[Column, Column]


def least_values(node: Expression, known: Environment, of: Mapping[Variable, Interval]) -> Column:
    """At most what ``node`` can become in each row: an int or a column.

    ``known`` holds the columns of the variables that have values, ``of`` the bounds of all.
    Rows where a computed part is undefined, which no solution extends, may get anything.
    """
    return _spans(node, known, of)[0]


def _spans(node: Expression, known: Environment, of: Mapping[Variable, Interval]) -> Span:
    whole = bounds(node, of)
    if all(v in known for v in node.variables()):
        result = values(node, known)[0]
        return result, result
    if node.op not in _RULES or any(
        low < -WIDE or high > WIDE for low, high in (whole, *(bounds(arg, of) for arg in node.args))
    ):
        return whole
    return _RULES[node.op](*(_spans(arg, known, of) for arg in node.args))


def _product(a: Span, b: Span) -> Span:
    corners = [x * y for x in a for y in b]
    return _extreme(np.minimum, corners), _extreme(np.maximum, corners)


def _extreme(choose: Any, columns: list[Column]) -> Column:
    return choose.reduce(np.broadcast_arrays(*columns))


_RULES: dict[str, Callable[..., Span]] = {
    "neg": lambda a: (-a[1], -a[0]),
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _product,
    "min": lambda a, b: tuple(_extreme(np.minimum, [a[k], b[k]]) for k in (0, 1)),
    "max": lambda a, b: tuple(_extreme(np.maximum, [a[k], b[k]]) for k in (0, 1)),
}
