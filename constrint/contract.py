"""From what a whole expression may be to what its parts may be: one rule per operation.

Every rule only removes values that no solution has. `Store.contract` passes intervals down,
`Store.impose` residues, and `Store.divide` divisibility; variables keep what reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, isqrt

from constrint.congruence import NOTHING, Residue, quotient, residue, restricted
from constrint.domain import Domain, divisors
from constrint.expression import Expression, Variable
from constrint.intervals import Interval, bounds

FACTORED = 10**10
"""Numbers up to this are factored to list their divisors."""


class Conflict(Exception):
    """A domain became empty: the constraints have no solution over the domains."""


class Store:
    """The domains on the way to a fixpoint, with their bounds."""

    def __init__(self, domains: Mapping[Variable, Domain]) -> None:
        self.domains = dict(domains)
        self.of: dict[Variable, Interval] = {}
        self.changed: set[Variable] = set()
        for variable, domain in domains.items():
            if not len(domain):
                raise Conflict
            self.of[variable] = (domain.low, domain.high)

    def put(self, variable: Variable, domain: Domain) -> None:
        """Takes ``domain``, a subset of the one there is, for ``variable``."""
        if not len(domain):
            raise Conflict
        if len(domain) < len(self.domains[variable]):
            self.domains[variable] = domain
            self.of[variable] = (domain.low, domain.high)
            self.changed.add(variable)

    def bounds(self, node: Expression) -> Interval:
        """The bounds of an expression over the present domains."""
        return bounds(node, self.of)

    def contract(self, node: Expression, low: int, high: int) -> None:
        """Removes what keeps ``node`` out of low..high."""
        now_low, now_high = self.bounds(node)
        if high < now_low or low > now_high or low > high:
            raise Conflict
        if low <= now_low and now_high <= high:
            return
        low, high = max(low, now_low), min(high, now_high)
        if isinstance(node, Variable):
            self.put(node, self.domains[node].within(low, high))
            return
        rule = getattr(self, _RULES.get(node.op, "_leave"))
        rule(*node.args, low, high)

    def _leave(self, *_: object) -> None:
        """No rule: the operation keeps what it has."""

    def _negation(self, a: Expression, low: int, high: int) -> None:
        self.contract(a, -high, -low)

    def _sum(self, a: Expression, b: Expression, low: int, high: int) -> None:
        b_low, b_high = self.bounds(b)
        self.contract(a, low - b_high, high - b_low)
        a_low, a_high = self.bounds(a)
        self.contract(b, low - a_high, high - a_low)

    def _difference(self, a: Expression, b: Expression, low: int, high: int) -> None:
        b_low, b_high = self.bounds(b)
        self.contract(a, low + b_low, high + b_high)
        a_low, a_high = self.bounds(a)
        self.contract(b, a_low - high, a_high - low)

    def _product(self, a: Expression, b: Expression, low: int, high: int) -> None:
        if a is b:
            self._root(a, 2, low, high)
            return
        for x, y in ((a, b), (b, a)):
            self._factor(x, y, low, high)
        if low == high != 0:
            self.divide(a, low)
            self.divide(b, low)

    def _factor(self, x: Expression, y: Expression, low: int, high: int) -> None:
        """What x may be where x*y lies in low..high."""
        if low > 0 or high < 0:
            self._exclude_zero(y)
        y_low, y_high = self.bounds(y)
        if y_high < 0:
            low, high, y_low, y_high = -high, -low, -y_high, -y_low
        if y_low > 0:
            least = -(-low // (y_high if low >= 0 else y_low))
            self.contract(x, least, high // (y_low if high >= 0 else y_high))
        elif low > 0 or high < 0:
            most = max(abs(low), abs(high))
            self.contract(x, -most, most)

    def _exclude_zero(self, node: Expression) -> None:
        low, high = self.bounds(node)
        if low == 0:
            self.contract(node, 1, high)
        elif high == 0:
            self.contract(node, low, -1)

    def _floor_quotient(self, a: Expression, b: Expression, low: int, high: int) -> None:
        self._exclude_zero(b)
        b_low, b_high = self.bounds(b)
        if b_low <= 0:
            return
        least = low * (b_low if low >= 0 else b_high)
        most = (high + 1) * (b_high if high + 1 >= 0 else b_low) - 1
        self.contract(a, least, most)
        a_low, a_high = self.bounds(a)
        if low > 0:
            self.contract(b, 1, a_high // low)
        if a_low > 0 and high >= 0:
            self.contract(b, a_low // (high + 1) + 1, b_high)

    def _ceil_quotient(self, a: Expression, b: Expression, low: int, high: int) -> None:
        self._exclude_zero(b)
        b_low, b_high = self.bounds(b)
        if b_low <= 0:
            return
        least = (low - 1) * (b_low if low >= 1 else b_high) + 1
        self.contract(a, least, high * (b_high if high >= 0 else b_low))

    def _remainder(self, a: Expression, b: Expression, low: int, high: int) -> None:
        self._exclude_zero(b)
        b_low, b_high = self.bounds(b)
        if b_low > 0:
            self.contract(b, low + 1, b_high)
        if low != high:
            return
        if b_low == b_high:
            self.impose(a, (abs(b_low), low))
        a_low, a_high = self.bounds(a)
        if low == 0 and a_low == a_high != 0:
            self.divide(b, a_low)

    def _power(self, base: Expression, exponent: Expression, low: int, high: int) -> None:
        least, most = self.bounds(exponent)
        if least == most >= 1:
            self._root(base, least, low, high)

    def _root(self, base: Expression, exponent: int, low: int, high: int) -> None:
        a_low, a_high = self.bounds(base)
        if a_low >= 0 or exponent % 2 == 0:
            most = _root_floor(max(high, 0), exponent)
            least = _root_floor(max(low, 1) - 1, exponent) + 1 if low > 0 else 0
            if a_low >= 0 or a_low > -least:
                self.contract(base, least, most)
            elif a_high < least:
                self.contract(base, -most, -least)
            else:
                self.contract(base, -most, most)

    def _minimum(self, a: Expression, b: Expression, low: int, high: int) -> None:
        for x, y in ((a, b), (b, a)):
            x_high = self.bounds(x)[1]
            self.contract(x, low, high if self.bounds(y)[0] > high else max(x_high, low))

    def _maximum(self, a: Expression, b: Expression, low: int, high: int) -> None:
        for x, y in ((a, b), (b, a)):
            x_low = self.bounds(x)[0]
            self.contract(x, low if self.bounds(y)[1] < low else min(x_low, high), high)

    def _absolute(self, a: Expression, low: int, high: int) -> None:
        a_low, a_high = self.bounds(a)
        if a_low > -low:
            self.contract(a, low, high)
        elif a_high < low:
            self.contract(a, -high, -low)
        else:
            self.contract(a, -high, high)

    def divide(self, node: Expression, whole: int) -> None:
        """Removes what does not divide ``whole``, which is not 0."""
        if not isinstance(node, Variable):
            return
        self.contract(node, -abs(whole), abs(whole))
        domain = self.domains[node]
        if len(domain) <= 4096:
            kept = tuple(v for v in domain if v != 0 and whole % v == 0)
        elif abs(whole) <= FACTORED:
            found = divisors(whole).values
            kept = tuple(sorted(v for d in found for v in (-d, d) if v in domain))
        else:
            return
        if len(kept) < len(domain):
            self.put(node, Domain(kept))

    def residue(self, node: Expression) -> Residue:
        """What the present domains say of ``node`` modulo some number."""
        return residue(node, self.domains.__getitem__)

    def impose(self, node: Expression, wanted: Residue) -> None:
        """Removes what keeps ``node`` from the residue ``wanted``."""
        m, r = wanted
        if m == 1:
            return
        n, s = self.residue(node)
        if (r - s) % gcd(m, n) if gcd(m, n) else r != s:
            raise Conflict
        op, args = node.op, node.args
        if isinstance(node, Variable):
            self.put(node, restricted(self.domains[node], wanted))
        elif op == "neg":
            self.impose(args[0], (m, -r % m if m else -r))
        elif op in {"+", "-"}:
            (am, ar), (bm, br) = self.residue(args[0]), self.residue(args[1])
            sign = 1 if op == "+" else -1
            self.impose(args[0], _anchored(gcd(m, bm), r - sign * br))
            self.impose(args[1], _anchored(gcd(m, am), sign * (r - ar)))
        elif op == "*":
            for x, y in ((args[0], args[1]), (args[1], args[0])):
                n, s = self.residue(y)
                if n == 0:
                    below = quotient(wanted, s)
                    if below is None:
                        raise Conflict
                    self.impose(x, below)
        elif op == "%":
            n, s = self.residue(args[1])
            if n == 0 and s != 0:
                self.impose(args[0], _anchored(gcd(m, s), r))


def _anchored(m: int, r: int) -> Residue:
    if m == 1:
        return NOTHING
    return (m, r % m) if m else (0, r)


def _root_floor(value: int, exponent: int) -> int:
    """The largest r with r**exponent <= value, for value >= 0."""
    if exponent == 1:
        return value
    if exponent == 2:
        return isqrt(value)
    low, high = 0, 1 << (value.bit_length() // exponent + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**exponent <= value:
            low = middle
        else:
            high = middle - 1
    return low


_RULES = {
    "neg": "_negation",
    "+": "_sum",
    "-": "_difference",
    "*": "_product",
    "//": "_floor_quotient",
    "cdiv": "_ceil_quotient",
    "%": "_remainder",
    "**": "_power",
    "min": "_minimum",
    "max": "_maximum",
    "abs": "_absolute",
}
