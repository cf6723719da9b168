"""Every solution of a problem, as one prefix tree per independent component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from constrint.clock import Clock
from constrint.constraint import Constraint
from constrint.contract import Conflict
from constrint.domain import Domain
from constrint.expression import Variable
from constrint.plan import Component, Plan
from constrint.propagate import propagate
from constrint.space import Space
from constrint.split import pieces, widest
from constrint.trie import Trie, build, from_columns


def enumerate_all(
    domains: Mapping[Variable, Domain], constraints: Sequence[Constraint], clock: Clock
) -> Space:
    """The space of all solutions; it is empty where there is none."""
    names = [variable.name for variable in domains]
    empty = Space(names, {}, None)
    shrunk = dict(domains)
    if widest(shrunk, constraints) is not None:
        try:
            shrunk = propagate(domains, constraints)
        except Conflict:
            return empty
    plan = Plan(shrunk, constraints)
    if not plan.feasible:
        return empty
    factors = []
    for component in plan.components:
        trie = _component(component, clock)
        if trie is None:
            return empty
        factors.append(trie)
    return Space(names, {v.name: entry[1] for v, entry in plan.constants.items()}, factors)


def _component(component: Component, clock: Clock) -> Trie | None:
    constraints = [leaf.constraint for leaf in component.leaves]
    about = {v: component.plan.domains[v] for leaf in constraints for v in leaf.variables()}
    if widest(about, constraints) is None:
        return build(component, clock)
    parts = []
    for piece in pieces(about, constraints, clock):
        space = enumerate_all(piece, constraints, clock)
        if space:
            parts.append(space.columns())
    if not parts:
        return None
    columns = {v: np.concatenate([part[v.name] for part in parts]) for v in component.variables}
    return from_columns(about, columns)
