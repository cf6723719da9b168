"""Large domains cut into pieces that columns can be grown over.

Columns try every value of a variable, which is fast up to some millions of combinations. Where
domains are larger, they are shrunk by propagation and cut in halves, depth first, until they are
small enough. The pieces are disjoint and together hold every solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from constrint.clock import Clock
from constrint.constraint import Constraint
from constrint.contract import Conflict
from constrint.domain import Domain
from constrint.expression import Variable
from constrint.plan import LISTED
from constrint.propagate import propagate

SMALL = 1 << 11
"""Domains of at most this many values are never cut."""

PAIR = 1 << 22
"""The most combinations that two linked variables of a piece may have."""

Domains = dict[Variable, Domain]


def pieces(
    domains: Mapping[Variable, Domain], constraints: Sequence[Constraint], clock: Clock
) -> Iterator[Domains]:
    """Disjoint sub-domains, each small enough for columns, that hold every solution."""
    waiting = [dict(domains)]
    if widest(waiting[0], constraints) is None:
        yield waiting[0]
        return
    while waiting:
        clock.check()
        try:
            shrunk = propagate(waiting.pop(), constraints)
        except Conflict:
            continue
        variable = widest(shrunk, constraints)
        if variable is None:
            yield shrunk
        else:
            for half in reversed(halves(shrunk[variable])):
                waiting.append({**shrunk, variable: half})


def widest(domains: Domains, constraints: Sequence[Constraint]) -> Variable | None:
    """The variable to cut next; None where columns can be grown over these domains."""
    if all(len(domain.values) <= SMALL for domain in domains.values()):
        return None
    linked: dict[Variable, None] = {}
    for constraint in constraints:
        scope = [v for v in constraint.variables() if len(domains[v]) > 1]
        if len(scope) > 1 or any(len(domains[v]) > LISTED for v in scope):
            matched = _matched(constraint, domains)
            linked.update(dict.fromkeys(v for v in scope if v is not matched))
    ranked = sorted(linked, key=lambda v: len(domains[v]), reverse=True)
    if not ranked or len(domains[ranked[0]]) == 1:
        return None
    first = len(domains[ranked[0]])
    second = len(domains[ranked[1]]) if len(ranked) > 1 else 1
    return ranked[0] if first > LISTED or first * second > PAIR else None


def _matched(constraint: Constraint, domains: Domains) -> Variable | None:
    """A variable with one side of an equality to itself: it is looked up, not tried."""
    if constraint.op != "==":
        return None
    for side, other in (constraint.args, constraint.args[::-1]):
        own: tuple[Variable, ...] = side.variables()
        elsewhere = set(other.variables())
        if len(own) == 1 and own[0] not in elsewhere and len(domains[own[0]]) <= LISTED:
            return own[0]
    return None


def halves(domain: Domain) -> tuple[Domain, Domain]:
    """The lower and the upper half of a domain."""
    middle = len(domain) // 2
    return Domain(domain.values[:middle]), Domain(domain.values[middle:])
