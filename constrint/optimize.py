"""The best solution by preferences that are compared lexicographically.

Preferences are sums; their terms are sorted by the component that they are about, so that each
component is optimised alone. A component with few enough solutions is enumerated and its columns
compared; a larger one is searched, preference by preference, by branch and bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing

from constrint.clock import Clock, OutOfTime
from constrint.columns import values
from constrint.constraint import Constraint
from constrint.domain import Domain
from constrint.expression import Expression, Variable
from constrint.plan import Component, Leaf, Plan
from constrint.search import Search
from constrint.split import pieces
from constrint.trie import TooMany, Trie, build

Assignment = dict[Variable, int]
Objective = tuple[Expression, int]

ENUMERATED = 1 << 20
"""Components whose enumeration forms more partial assignments than this are searched."""


GRACE = 0.5
"""Seconds allowed, when time is up, to complete a solution that is known in part."""


class Incumbent:
    """The best assignment so far, and whether it is known to be the best of all."""

    def __init__(self) -> None:
        self.assignment: Assignment | None = None
        self.proven = False


def optimize(
    domains: Mapping[Variable, Domain],
    constraints: Sequence[Constraint],
    objectives: Sequence[Objective],
    clock: Clock,
    incumbent: Incumbent,
) -> None:
    """Leaves the best assignment in ``incumbent``, also when time runs out on the way."""
    least: list[int] | None = None
    for piece in pieces(domains, constraints, clock):
        found = _best(piece, constraints, objectives, clock, incumbent if least is None else None)
        if found is None:
            continue
        merit = _merit(found, objectives)
        if least is None or merit < least:
            least, incumbent.assignment = merit, found
        if not objectives:
            break
    incumbent.proven = True


def _merit(assignment: Assignment, objectives: Sequence[Objective]) -> list[int]:
    at = {v: (x, x, x) for v, x in assignment.items()}
    return [sign * values(node, at)[0] for node, sign in objectives]


def _best(
    domains: Mapping[Variable, Domain],
    constraints: Sequence[Constraint],
    objectives: Sequence[Objective],
    clock: Clock,
    incumbent: Incumbent | None,
) -> Assignment | None:
    """The best assignment of one piece; what is found on the way goes to ``incumbent``."""
    terms = [list(_terms(node, sign)) for node, sign in objectives]
    # An undefined objective must be seen whole; so must terms over several variables.
    groups = [term.variables() for listed in terms for term, _ in listed]
    plan = Plan(dict(domains), constraints, groups)
    if not plan.feasible:
        return None
    result = {v: entry[1] for v, entry in plan.constants.items()}
    home = {v: component for component in plan.components for v in component.variables}
    parts: dict[int, list[list[Objective]]] = {
        id(component): [[] for _ in objectives] for component in plan.components
    }
    for k, listed in enumerate(terms):
        for term, sign in listed:
            about = [home[v] for v in term.variables() if v in home]
            if about:
                parts[id(about[0])][k].append((term, sign))
    try:
        for component in plan.components:
            sums = [_sum(listed) for listed in parts[id(component)] if listed]
            found = _best_of_component(component, sums, clock, result)
            if found is None:
                return None
            result.update(found)
    except (OutOfTime, KeyboardInterrupt):
        if incumbent is not None and incumbent.assignment is None:
            incumbent.assignment = _completed(plan, result)
        raise
    return result


def _completed(plan: Plan, result: Assignment) -> Assignment | None:
    """``result`` with any values for the components that time did not suffice for.

    A short grace, so that the answer for one component is not lost for want of another.
    """
    for component in plan.components:
        if all(v in result for v in component.variables):
            continue
        try:
            found = Search(component, Clock(GRACE)).run()
        except OutOfTime:
            return None
        if found is None:
            return None
        result.update(found)
    return result


def _terms(node: Expression, sign: int) -> Iterator[Objective]:
    """The summands of an expression with their signs, which the objective's sign multiplies."""
    if node.op in {"+", "-"}:
        yield from _terms(node.args[0], sign)
        yield from _terms(node.args[1], sign if node.op == "+" else -sign)
    elif node.op == "neg":
        yield from _terms(node.args[0], -sign)
    else:
        yield node, sign


def _sum(listed: Sequence[Objective]) -> Expression:
    """The signed sum as one expression to be made small."""
    result: Expression | None = None
    for term, sign in listed:
        signed = term if sign > 0 else Expression("neg", term)
        result = signed if result is None else Expression("+", result, signed)
    assert result is not None
    return result


def _best_of_component(
    component: Component, sums: Sequence[Expression], clock: Clock, partial: Assignment
) -> Assignment | None:
    """The assignment of a component that makes the sums least, the first one first.

    When interrupted, leaves the best so far in ``partial``.
    """
    if not sums and len(component.variables) > 1:
        return Search(component, clock).run()
    try:
        trie = build(component, clock, limit=ENUMERATED)
    except TooMany:
        trie = None
    else:
        return None if trie is None else _best_row(component, trie, sums)
    found: Assignment | None = None
    for node in sums:
        search = Search(component, clock, node)
        try:
            found = search.run()
        except (OutOfTime, KeyboardInterrupt):
            partial.update(search.best or found or {})
            raise
        if found is None:
            return None
        assert search.least is not None
        reached = Constraint("==", node, Expression("const", int(search.least)))
        component.leaves.append(
            Leaf(reached, [v for v in node.variables() if v not in component.plan.constants])
        )
    return found


def _best_row(component: Component, trie: Trie, sums: Sequence[Expression]) -> Assignment:
    level_of = {level.variable: level for level in trie.levels}
    rows: np.typing.NDArray[np.int64] | None = None
    for node in sums:
        at = {}
        for v in node.variables():
            if v not in level_of:
                at[v] = component.plan.entry(v)
                continue
            level, domain = level_of[v], component.plan.domains[v]
            column = trie.column(level) if rows is None else trie.take(level, rows)
            at[v] = (column.astype(np.int64), domain.low, domain.high)
        merit = np.asarray(values(node, at)[0])
        if merit.ndim == 0:
            continue
        best = np.nonzero(merit == merit.min())[0]
        rows = best if rows is None else rows[best]
    row = np.zeros(1, dtype=np.int64) if rows is None else rows[:1]
    return {level.variable: int(trie.take(level, row)[0]) for level in trie.levels}
