"""Finite sets of integers, kept as a range where they are one and as a sorted tuple otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.errors import ModelError

LIMIT = 2**62
"""No value of a domain may lie beyond ±LIMIT, so that columns of values always fit int64."""

Array = npt.NDArray[Any]


class Domain:
    """An immutable, sorted, finite set of integers: ``range ∩ stride`` or a list of values."""

    __slots__ = ("_array", "_set", "values")

    values: range | tuple[int, ...]

    def __init__(self, values: range | tuple[int, ...]) -> None:
        """Takes ``values`` as they are: sorted, without repetition. Others use `domain_of`."""
        self.values = values
        self._array: Array | None = None
        self._set: frozenset[int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[int]:
        return iter(self.values)

    def __contains__(self, value: int) -> bool:
        if isinstance(self.values, range) or len(self.values) < 16:
            return value in self.values
        if self._set is None:
            self._set = frozenset(self.values)
        return value in self._set

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Domain) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self.values))

    @property
    def low(self) -> int:
        """The smallest value; the domain must not be empty."""
        return self.values[0]

    @property
    def high(self) -> int:
        """The largest value; the domain must not be empty."""
        return self.values[-1]

    @property
    def step(self) -> int:
        """The stride of a range; 1 for a list of values."""
        return self.values.step if isinstance(self.values, range) else 1

    def array(self) -> Array:
        """All values, ascending, as int64."""
        if self._array is None:
            if isinstance(self.values, range):
                low = self.values.start
                step = self.values.step
                self._array = np.arange(len(self.values), dtype=np.int64) * step + low
            else:
                self._array = np.array(self.values, dtype=np.int64)
        return self._array

    def keep(self, mask: Array) -> Domain:
        """The values at which ``mask`` (one boolean per value) is true."""
        return Domain(tuple(self.array()[mask].tolist()))

    def within(self, low: int, high: int) -> Domain:
        """The values v with low <= v <= high."""
        if not self.values or (low <= self.low and self.high <= high):
            return self
        if isinstance(self.values, range):
            start, step = self.values.start, self.values.step
            first = start if low <= start else start + -(-(low - start) // step) * step
            stop = min(self.high, high) + 1
            return Domain(range(first, max(first, stop), step))
        return Domain(tuple(v for v in self.values if low <= v <= high))

    def intersection(self, values: Iterable[int]) -> Domain:
        """The values that are also in ``values``."""
        return Domain(tuple(sorted({v for v in values if v in self})))

    def __str__(self) -> str:
        values = self.values
        if isinstance(values, range):
            if len(values) > 2:
                stride = f" step {values.step}" if values.step != 1 else ""
                return f"{values[0]}..{values[-1]}{stride}"
            values = tuple(values)
        if len(values) > 12:
            return f"{{{', '.join(map(str, values[:10]))}, … {values[-1]}}}"
        return f"{{{', '.join(map(str, values))}}}"

    def __repr__(self) -> str:
        return f"Domain({self})"


def domain_of(values: Iterable[int], name: str) -> Domain:
    """The domain holding ``values``; ``name`` is the variable the errors speak of."""
    if isinstance(values, Domain):
        return values
    if isinstance(values, range):
        ascending = values if values.step > 0 else values[::-1]
        ends = (ascending.start, ascending.stop - 1)
        if ends[0] <= ends[1]:
            _check_limits(name, ends)
            # An end off the stride is moved onto it, so that the last value is the high end.
            last = ascending.start + (ends[1] - ends[0]) // ascending.step * ascending.step
            return Domain(range(ascending.start, last + 1, ascending.step))
        return Domain(range(0))
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ModelError(f"the domain of {name!r} is {values!r}: use a range or a list of integers")
    found = set()
    for value in values:
        found.add(as_integer(value, f"the domain of {name!r}"))
    ordered = tuple(sorted(found))
    if ordered:
        _check_limits(name, (ordered[0], ordered[-1]))
    return Domain(ordered)


def as_integer(value: object, where: str) -> int:
    """``value`` as a plain int; a bool, a float or anything else is an error naming ``where``."""
    if type(value) is int:
        return value
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    hint = f": write {int(value)}" if isinstance(value, bool) else ""
    raise ModelError(f"{where} holds {value!r}, which is not an integer{hint}")


def _check_limits(name: str, ends: tuple[int, int]) -> None:
    for value in ends:
        if abs(value) > LIMIT:
            raise ModelError(
                f"the domain of {name!r} reaches {value}: values must lie within ±2**62; "
                "count in a larger unit"
            )


def divisors(n: int) -> Domain:
    """The positive divisors of ``n``, which must not be 0."""
    n = abs(as_integer(n, "divisors_of"))
    if n == 0:
        raise ModelError("divisors_of(0): every integer divides 0; give a range instead")
    found = [1]
    rest, prime = n, 2
    while prime * prime <= rest:
        power, grown = 1, list(found)
        while rest % prime == 0:
            rest //= prime
            power *= prime
            grown += [d * power for d in found]
        found = grown
        prime += 1 if prime == 2 else 2
    if rest > 1:
        found += [d * rest for d in found]
    return domain_of(found, "divisors_of")


def powers_of_two(low: int, high: int) -> Domain:
    """The powers of two p with low <= p <= high."""
    as_integer(low, "powers_of_two"), as_integer(high, "powers_of_two")
    bits = range(max(0, (max(low, 1) - 1).bit_length()), max(high, 0).bit_length())
    return domain_of([1 << b for b in bits], "powers_of_two")
