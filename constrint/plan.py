"""From domains and constraints to independent components and the order in which to grow them.

Constraints on one variable shrink its domain; variables of one value become constants; what
remains falls into components that share no constraint. Constraints whose variables have few
combinations are tabulated, which makes their selectivity known exactly.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.columns import Entry, truth
from constrint.constraint import Constraint
from constrint.domain import Domain
from constrint.expression import Expression, Variable

Array = npt.NDArray[Any]
Domains = dict[Variable, Domain]

LISTED = 1 << 20
"""Constraints on one variable are applied to the domains of at most this many values."""

TABULATED = 1 << 14
"""A constraint with at most this many combinations of values is tabulated."""

GUESSED_SELECTIVITY = 0.3
"""The share of assignments that a constraint too large to be tabulated is taken to let through."""


class Leaf:
    """One constraint in the form of `lower.normal`, with the variables it is still about."""

    __slots__ = ("constraint", "grid", "matches", "scope", "share")

    def __init__(self, constraint: Constraint, scope: Sequence[Variable]) -> None:
        self.constraint = constraint
        self.scope = {variable: axis for axis, variable in enumerate(scope)}
        self.grid: Array | None = None
        self.share = GUESSED_SELECTIVITY
        self.matches: dict[Variable, tuple[Expression, Expression]] = {}

    def find_matches(self, constants: Container[Variable]) -> None:
        """Notes the variables that have one side of an equality to themselves.

        Such a variable is looked up from the value of the other side instead of being tried.
        """
        if self.constraint.op != "==":
            return
        left, right = self.constraint.args
        for own, other in ((left, right), (right, left)):
            alone = [v for v in own.variables() if v not in constants]
            if len(alone) == 1 and all(v is not alone[0] for v in other.variables()):
                self.matches[alone[0]] = (own, other)


class Plan:
    """The simplified problem. ``feasible`` is False where a domain became empty."""

    def __init__(
        self,
        domains: Domains,
        constraints: Iterable[Constraint],
        together: Iterable[Sequence[Variable]] = (),
    ) -> None:
        """``together`` lists groups of variables that must come into the same component."""
        self.domains = dict(domains)
        self.constants: dict[Variable, Entry] = {}
        self.components: list[Component] = []
        self.feasible = all(len(domain) > 0 for domain in domains.values())
        if not self.feasible:
            return
        for variable, domain in domains.items():
            if len(domain) == 1:
                self._fix(variable, domain.low)
        leaves = self._shrink(constraints)
        if self.feasible:
            self._split(leaves, together)

    def entry(self, variable: Variable, axis: int = 0, axes: int = 1) -> Entry:
        """The values of a variable along one of several axes, with their bounds."""
        constant = self.constants.get(variable)
        if constant is not None:
            return constant
        domain = self.domains[variable]
        column = domain.array()
        if axes > 1:
            shape = [1] * axes
            shape[axis] = len(column)
            column = column.reshape(shape)
        return column, domain.low, domain.high

    def _fix(self, variable: Variable, value: int) -> None:
        self.constants[variable] = (value, value, value)

    def _shrink(self, constraints: Iterable[Constraint]) -> list[Leaf]:
        """Applies the constraints on at most one variable, as often as that fixes another."""
        pending, fixed_before = list(constraints), -1
        leaves: list[Leaf] = []
        while fixed_before != len(self.constants):
            fixed_before = len(self.constants)
            leaves, again = [], []
            for constraint in pending:
                scope = [v for v in constraint.variables() if v not in self.constants]
                if len(scope) > 1 or (scope and len(self.domains[scope[0]].values) > LISTED):
                    leaves.append(Leaf(constraint, scope))
                    again.append(constraint)
                elif not self._restrict(constraint, scope):
                    self.feasible = False
                    return []
            pending = again
        return leaves

    def _restrict(self, constraint: Constraint, scope: list[Variable]) -> bool:
        """Applies a constraint on no variable or on one; False where nothing remains."""
        held = truth(constraint, {v: self.entry(v) for v in constraint.variables()})
        if not scope or not isinstance(held, np.ndarray) or held.ndim == 0:
            return bool(held)
        variable = scope[0]
        domain = self.domains[variable]
        if not held.all():
            domain = self.domains[variable] = domain.keep(held)
        if len(domain) == 1:
            self._fix(variable, domain.low)
        return len(domain) > 0

    def _split(self, leaves: list[Leaf], together: Iterable[Sequence[Variable]]) -> None:
        """Groups the variables that constraints connect; the others stand alone."""
        group: dict[Variable, list[Variable]] = {}
        links: list[Iterable[Variable]] = [leaf.scope for leaf in leaves]
        for extra in together:
            links.append([v for v in extra if v not in self.constants])
        for linked in links:
            joined: list[Variable] = []
            for variable in linked:
                other = group.setdefault(variable, [variable])
                if other is not joined:
                    small, large = sorted((joined, other), key=len)
                    large += small
                    for moved in small:
                        group[moved] = large
                    joined = large
        of: dict[int, Component] = {}
        for variable in self.domains:
            if variable in self.constants:
                continue
            members = group.get(variable, [variable])
            component = of.get(id(members))
            if component is None:
                component = of[id(members)] = Component(self, [])
                self.components.append(component)
            component.variables.append(variable)
        for leaf in leaves:
            of[id(group[next(iter(leaf.scope))])].leaves.append(leaf)


class Component:
    """Variables connected by constraints, and these constraints."""

    def __init__(self, plan: Plan, variables: list[Variable]) -> None:
        self.plan = plan
        self.variables = variables
        self.leaves: list[Leaf] = []

    def tabulate(self) -> bool:
        """Tabulates the small constraints; False where one of them never holds."""
        for leaf in self.leaves:
            sizes = [len(self.plan.domains[v]) for v in leaf.scope]
            if prod(sizes) > TABULATED:
                leaf.find_matches(self.plan.constants)
                continue
            held = truth(leaf.constraint, axes(self.plan, leaf))
            whole = isinstance(held, np.ndarray) and held.shape == tuple(sizes)
            leaf.grid = held if whole else np.broadcast_to(held, sizes)
            leaf.share = int(np.count_nonzero(leaf.grid)) / leaf.grid.size
            if leaf.share == 0:
                return False
        return True

    def order(self, first: Sequence[Variable] = ()) -> list[Variable]:
        """An order which keeps the number of partial assignments small; ``first`` lead it.

        Greedy: of the variables that share a constraint with those placed, the one by which
        the number of partial assignments is expected to grow least, counting a constraint that
        it leaves one variable short at the root of its share.
        """
        size = {v: len(self.plan.domains[v]) for v in self.variables}
        touching: dict[Variable, list[Leaf]] = {v: [] for v in self.variables}
        missing: dict[int, int] = {}
        for leaf in self.leaves:
            missing[id(leaf)] = len(leaf.scope)
            for variable in leaf.scope:
                touching[variable].append(leaf)
        placed: list[Variable] = []
        rest = dict.fromkeys(self.variables)
        near: set[Variable] = set()
        queue = list(first)
        while rest:
            best, least = next(iter(rest)), float("inf")
            if queue:
                best, least = queue.pop(0), -1.0
            for variable in rest:
                growth = float(size[variable])
                for leaf in touching[variable]:
                    short = missing[id(leaf)]
                    if short == 1:
                        growth *= 1 / size[variable] if variable in leaf.matches else leaf.share
                    elif short == 2:
                        growth *= leaf.share**0.5
                if near and variable not in near:
                    growth *= 4
                if growth < least:
                    best, least = variable, growth
            del rest[best]
            placed.append(best)
            for leaf in touching[best]:
                missing[id(leaf)] -= 1
                near.update(leaf.scope)
        return placed


def axes(plan: Plan, leaf: Leaf) -> dict[Variable, Entry]:
    """Every variable of a constraint along its own axis."""
    scope = leaf.scope
    return {v: plan.entry(v, scope.get(v, 0), len(scope)) for v in leaf.constraint.variables()}
