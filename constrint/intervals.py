"""Interval arithmetic on Python's integers: the bounds of an operation from those of its parts.

Exact for every operation alone; parts of an interval on which the operation is undefined
(division by zero, negative powers) are left out. An operation undefined everywhere gets (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from constrint.errors import ModelError
from constrint.expression import Expression, Variable

Interval = tuple[int, int]


def bounds(node: Expression, of: Mapping[Variable, Interval]) -> Interval:
    """The least interval that interval arithmetic finds around the values of ``node``."""
    op = node.op
    if op == "var":
        return of[node]  # type: ignore[index]
    if op == "const":
        return node.args[0], node.args[0]
    if op == "if":
        (low, high), (other_low, other_high) = bounds(node.args[1], of), bounds(node.args[2], of)
        return min(low, other_low), max(high, other_high)
    return OPERATIONS[op](*(bounds(arg, of) for arg in node.args))


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    return a[0] + b[0], a[1] + b[1]


def subtract(a: Interval, b: Interval) -> Interval:
    """a - b."""
    return a[0] - b[1], a[1] - b[0]


def multiply(a: Interval, b: Interval) -> Interval:
    """a * b."""
    if a[0] >= 0 and b[0] >= 0:
        return a[0] * b[0], a[1] * b[1]
    corners = (a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1])
    return min(corners), max(corners)


def nonzero_parts(b: Interval) -> list[Interval]:
    """The negative and the positive part of an interval, where there is one."""
    if b[0] > 0 or b[1] < 0:
        return [b]
    parts = []
    if b[0] < 0:
        parts.append((b[0], -1))
    if b[1] > 0:
        parts.append((1, b[1]))
    return parts


def floor_divide(a: Interval, b: Interval) -> Interval:
    """a // b over the nonzero b."""
    corners = [x // y for part in nonzero_parts(b) for x in a for y in part] or [0]
    return min(corners), max(corners)


def ceil_divide(a: Interval, b: Interval) -> Interval:
    """a / b rounded up, over the nonzero b."""
    corners = [-(-x // y) for part in nonzero_parts(b) for x in a for y in part] or [0]
    return min(corners), max(corners)


def remainder(a: Interval, b: Interval) -> Interval:
    """a % b over the nonzero b: the sign of the remainder is that of b."""
    if b[0] == b[1] != 0 and a[0] // b[0] == a[1] // b[0]:
        return (a[0] % b[0], a[1] % b[0])
    low, high = min(0, b[0] + 1), max(0, b[1] - 1)
    if b[0] > 0 and a[0] >= 0:
        return (a[0] if a[1] < b[0] else 0), min(high, a[1])
    return low, high


LARGEST_POWER_BITS = 1 << 14


def power(a: Interval, b: Interval) -> Interval:
    """a ** b over the b that are not negative; ModelError where that leaves all bounds."""
    if b[1] < 0:
        return 0, 0
    if b[1] * max(abs(a[0]), abs(a[1])).bit_length() > LARGEST_POWER_BITS:
        raise ModelError(
            f"a power of up to {max(abs(a[0]), abs(a[1]))} with an exponent of up to {b[1]} "
            f"has more than {LARGEST_POWER_BITS} bits: restrict the domains"
        )
    least, most = max(0, b[0]), b[1]
    if a[0] >= 0:
        low = min(a[0] ** least, a[0] ** most)
        return min(low, a[1] ** least), max(a[1] ** most, a[0] ** least)
    candidates = [x**e for x in (a[0], a[1]) for e in {least, most, max(least, most - 1)}]
    candidates += [x**e for x in (-1, 0, 1) if a[0] <= x <= a[1] for e in {least, most}]
    if least < most:  # both parities occur
        candidates += [a[0] ** min(least + 1, most)]
    return min(candidates), max(candidates)


def absolute(a: Interval) -> Interval:
    """abs(a)."""
    if a[0] >= 0:
        return a
    return (0 if a[1] > 0 else -a[1]), max(-a[0], a[1])


OPERATIONS: dict[str, Callable[..., Interval]] = {
    "neg": lambda a: (-a[1], -a[0]),
    "+": add,
    "-": subtract,
    "*": multiply,
    "//": floor_divide,
    "cdiv": ceil_divide,
    "%": remainder,
    "**": power,
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "abs": absolute,
}
