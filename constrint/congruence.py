"""Residues: what is known of an expression modulo some number.

A residue (m, r) says that a value is congruent to r modulo m; (0, r) says that it is r, and
(1, 0) says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from constrint.domain import Domain
from constrint.expression import Expression, Variable

Residue = tuple[int, int]
DomainOf = Callable[[Variable], Domain]

NOTHING: Residue = (1, 0)
LISTED = 256
"""The common stride of a list of values is looked for up to this length."""


def residue(node: Expression, domain_of: DomainOf) -> Residue:  # noqa: PLR0911
    """What is known of ``node`` from the strides of its variables."""
    op = node.op
    if op == "const":
        return 0, node.args[0]
    if isinstance(node, Variable):
        return of_domain(domain_of(node))
    if op == "neg":
        m, r = residue(node.args[0], domain_of)
        return _reduced(m, -r)
    if op not in {"+", "-", "*", "%"}:
        return NOTHING
    (m, r), (n, s) = (residue(arg, domain_of) for arg in node.args)
    if op == "*":
        return _reduced(gcd(m * n, m * s, n * r), r * s)
    if op == "%":
        return _reduced(gcd(m, s), r) if n == 0 and s != 0 and m != 0 else NOTHING
    return _reduced(gcd(m, n), r + s if op == "+" else r - s)


def of_domain(domain: Domain) -> Residue:
    """The stride of a domain and where it is anchored."""
    if len(domain) <= 1:
        return (0, domain.low) if len(domain) else NOTHING
    if isinstance(domain.values, range):
        return _reduced(domain.step, domain.low)
    if len(domain) > LISTED:
        return NOTHING
    return _reduced(gcd(*(v - domain.low for v in domain.values)), domain.low)


def quotient(wanted: Residue, factor: int) -> Residue | None:
    """The residue of x where factor*x has the residue ``wanted``; None where there is none."""
    m, r = wanted
    if factor == 0:
        return NOTHING if (r % m if m else r) == 0 else None
    if m == 0:
        return (0, r // factor) if r % factor == 0 else None
    common = gcd(factor, m)
    if r % common:
        return None
    modulus = m // common
    return (
        _reduced(modulus, r // common * pow(factor // common, -1, modulus))
        if (modulus > 1)
        else NOTHING
    )


def restricted(domain: Domain, wanted: Residue) -> Domain:
    """The values of ``domain`` with the residue ``wanted``."""
    m, r = wanted
    if m == 0:
        return domain.within(r, r)
    if m == 1 or not len(domain):
        return domain
    if not isinstance(domain.values, range):
        return Domain(tuple(v for v in domain.values if (v - r) % m == 0))
    step, low = domain.values.step, domain.low
    common = gcd(step, m)
    if (r - low) % common:
        return Domain(range(0))
    # low + k*step ≡ r (mod m) for the least k, and then every m/common steps.
    modulus = m // common
    k = (r - low) // common * pow(step // common, -1, modulus) % modulus if modulus > 1 else 0
    first = low + k * step
    if first > domain.high:
        return Domain(range(0))
    stride = step * modulus
    count = (domain.high - first) // stride + 1
    return Domain(range(first, first + (count - 1) * stride + 1, stride))


def _reduced(m: int, r: int) -> Residue:
    m = abs(m)
    return (m, r % m) if m else (0, r)
