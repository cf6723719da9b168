"""A few solutions without the others: depth first in each component, as far as needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product

from constrint.clock import Clock
from constrint.constraint import Constraint
from constrint.domain import Domain
from constrint.expression import Variable
from constrint.plan import Component, Plan
from constrint.search import Search
from constrint.split import pieces

FEW = 1 << 12
"""The most solutions that are searched for instead of being enumerated."""


def some(
    domains: Mapping[Variable, Domain], constraints: Sequence[Constraint], limit: int
) -> Iterator[dict[str, int]]:
    """At most ``limit`` solutions, all different; all of them if there are no more."""
    left = limit
    for piece in pieces(domains, constraints, Clock()):
        if left <= 0:
            return
        for found in islice(_of_piece(piece, constraints, left), left):
            yield {v.name: found[v] for v in domains}
            left -= 1


def _of_piece(
    piece: dict[Variable, Domain], constraints: Sequence[Constraint], limit: int
) -> Iterator[dict[Variable, int]]:
    """Each component's first ``limit`` assignments suffice for that many of their product."""
    plan = Plan(piece, constraints)
    if not plan.feasible:
        return
    fixed = {v: entry[1] for v, entry in plan.constants.items()}
    parts = [_of_component(component, limit) for component in plan.components]
    for chosen in product(*parts):
        found = dict(fixed)
        for part in chosen:
            found.update(part)
        yield found


def _of_component(component: Component, limit: int) -> list[dict[Variable, int]]:
    if len(component.variables) == 1 and not component.leaves:
        variable = component.variables[0]
        return [{variable: x} for x in component.plan.domains[variable].values[:limit]]
    search = Search(component, Clock(), wanted=limit)
    search.run()
    return search.found
