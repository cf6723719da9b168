"""All solutions of one component as a prefix tree in arrays.

Level k has one node per distinct prefix of k+1 values that some solution has, in ascending
order; a node knows its value and the first of its leaves. The last level has one node per
solution and costs one narrow integer each; the levels above are shorter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.clock import Clock
from constrint.domain import Domain
from constrint.expression import Variable
from constrint.plan import LISTED, Component, Leaf
from constrint.step import Columns, Step

Array = npt.NDArray[Any]

BLOCK = 1 << 18
"""Partial assignments are extended in blocks that form about this many."""


def narrow(domain: Domain) -> Array:
    """The values of a domain in the narrowest signed type that holds them."""
    reach = max(domain.high, -1 - domain.low)
    for bits, kind in ((7, np.int8), (15, np.int16), (31, np.int32)):
        if reach < 1 << bits:
            return domain.array().astype(kind)
    return domain.array()


class Level:
    """One variable: a value per node, and where each node's leaves begin (None: one each)."""

    __slots__ = ("first", "values", "variable")

    def __init__(self, variable: Variable, values: Array, first: Array | None) -> None:
        self.variable = variable
        self.values = values
        self.first = first


class Trie:
    """The solutions of one component, in lexicographic order of its levels."""

    def __init__(self, levels: list[Level]) -> None:
        self.levels = levels
        self.count = len(levels[-1].values)

    def column(self, level: Level) -> Array:
        """The values of one variable in all solutions."""
        if level.first is None:
            return level.values
        return np.repeat(level.values, np.diff(level.first))

    def slice(self, level: Level, start: int, stop: int) -> Array:
        """The values of one variable in the solutions start .. stop-1."""
        if level.first is None:
            return level.values[start:stop]
        low = int(np.searchsorted(level.first, start, "right")) - 1
        high = int(np.searchsorted(level.first, stop, "left"))
        bounds = np.clip(level.first[low : high + 1], start, stop)
        return np.repeat(level.values[low:high], np.diff(bounds))

    def take(self, level: Level, rows: Array) -> Array:
        """The values of one variable in the given solutions."""
        if level.first is None:
            return level.values[rows]
        return level.values[np.searchsorted(level.first, rows, "right") - 1]

    def find(self, config: dict[Variable, int]) -> int | None:
        """The position of the solution with these values; None where there is none."""
        low, high = 0, self.count
        for level in self.levels:
            start, stop = low, high
            if level.first is not None:
                start = int(np.searchsorted(level.first, low, "left"))
                stop = int(np.searchsorted(level.first, high, "left"))
            value = config[level.variable]
            siblings = level.values[start:stop]
            info = np.iinfo(siblings.dtype)
            if not info.min <= value <= info.max:
                return None
            node = start + int(np.searchsorted(siblings, np.array(value, dtype=siblings.dtype)))
            if node == stop or level.values[node] != value:
                return None
            low, high = node, node + 1
            if level.first is not None:
                low, high = int(level.first[node]), int(level.first[node + 1])
        return low


class Axis(Trie):
    """A variable under no constraint, whose values are too many to be listed."""

    def __init__(self, variable: Variable, domain: Domain) -> None:
        super().__init__([Level(variable, np.array([domain.low, domain.high]), None)])
        self.domain = domain
        self.count = len(domain)

    def column(self, level: Level) -> Array:
        """All values."""
        return self.domain.array()

    def slice(self, level: Level, start: int, stop: int) -> Array:
        """The values start .. stop-1."""
        return Domain(self.domain.values[start:stop]).array()

    def take(self, level: Level, rows: Array) -> Array:
        """The values at the given positions."""
        return rows.astype(np.int64) * self.domain.step + self.domain.low

    def find(self, config: dict[Variable, int]) -> int | None:
        """The position of a value."""
        value = config[self.levels[0].variable]
        return self.domain.values.index(value) if value in self.domain else None


class TooMany(Exception):
    """More partial assignments than were allowed."""


def build(component: Component, clock: Clock, limit: int | None = None) -> Trie | None:
    """All solutions of a component; None where there is none.

    Raises TooMany if one variable leaves more than ``limit`` partial assignments.
    """
    plan = component.plan
    if len(component.variables) == 1:
        variable = component.variables[0]
        domain = plan.domains[variable]
        if isinstance(domain.values, range) and len(domain) > LISTED:
            return Axis(variable, domain)
        return Trie([Level(variable, narrow(domain), None)])
    if not component.tabulate():
        return None
    order = component.order()
    leaves = completed(component, order)
    last_use = dict.fromkeys(order, -1)
    for k, completes in enumerate(leaves):
        for leaf in completes:
            last_use.update(dict.fromkeys(leaf.scope, k))
    grown: list[tuple[Array, Array]] = []  # per level: children per parent, positions of nodes
    columns: Columns = {}
    rows = 1
    for k, variable in enumerate(order):
        live = [v for v in order[: k + 1] if last_use[v] > k]
        step = Step(component, variable, leaves[k], rows, live)
        counts, chosen, columns = _extended(step, columns, rows, clock)
        grown.append((counts, chosen))
        rows = len(chosen)
        if rows == 0:
            return None
        if limit is not None and rows > limit:
            raise TooMany
    return Trie(_levels(component, order, grown))


def completed(component: Component, order: list[Variable]) -> list[list[Leaf]]:
    """For each variable of ``order``, the constraints of which it is the last."""
    place = {variable: k for k, variable in enumerate(order)}
    result: list[list[Leaf]] = [[] for _ in order]
    for leaf in component.leaves:
        result[max(place[v] for v in leaf.scope)].append(leaf)
    return result


def _extended(
    step: Step, columns: Columns, rows: int, clock: Clock
) -> tuple[Array, Array, Columns]:
    """`Step.extend` in blocks, so that what it holds on the way stays small."""
    per_block = max(1, BLOCK // max(1, step.fan_out))
    if rows <= per_block:
        return step.extend(columns, rows)
    parts = []
    for start in range(0, rows, per_block):
        clock.check()
        stop = min(rows, start + per_block)
        block = {v: column[start:stop] for v, column in columns.items()}
        parts.append(step.extend(block, stop - start))
    counts = np.concatenate([part[0] for part in parts])
    chosen = np.concatenate([part[1] for part in parts])
    kept = {v: np.concatenate([part[2][v] for part in parts]) for v in parts[0][2]}
    return counts, chosen, kept


def _levels(
    component: Component, order: list[Variable], grown: list[tuple[Array, Array]]
) -> list[Level]:
    """Drops the prefixes that no solution has, and counts the leaves below the others."""
    levels: list[Level] = []
    first: Array | None = None
    for k in reversed(range(len(order))):
        variable = order[k]
        counts, chosen = grown.pop()  # so that it can be freed before the next copy is made
        values = narrow(component.plan.domains[variable])[chosen]
        if first is None:
            levels.append(Level(variable, values, None))
        else:
            alive = first[1:] > first[:-1]
            if alive.all():
                levels.append(Level(variable, values, first))
            else:
                kept = np.append(first[:-1][alive], first[-1])
                levels.append(Level(variable, values[alive], kept))
        below = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=below[1:])
        first = below if first is None else first[below]
    levels.reverse()
    return levels


def projected(trie: Trie, kept: list[Level]) -> Trie:
    """The distinct assignments that the solutions give to the variables of ``kept``."""
    if len(kept) == len(trie.levels):
        return trie
    columns = [trie.column(level) for level in kept]
    order = np.lexsort(columns[::-1])
    new = np.zeros(trie.count, dtype=bool)
    new[:1] = True
    for column in columns:
        in_order = column[order]
        new[1:] |= in_order[1:] != in_order[:-1]
    rows = order[new]
    found = {level.variable: column[rows] for level, column in zip(kept, columns, strict=True)}
    return from_columns({level.variable: level.variable.domain for level in kept}, found)


def from_columns(domains: dict[Variable, Domain], columns: dict[Variable, Array]) -> Trie:
    """The prefix tree of the given solutions, which are distinct, in any order."""
    variables = list(columns)
    order = np.lexsort([columns[v] for v in reversed(variables)])
    length = len(order)
    starts = np.zeros(length, dtype=bool)  # where a new prefix begins
    starts[:1] = True
    levels = []
    for v in variables:
        column = columns[v][order]
        starts[1:] |= column[1:] != column[:-1]
        first = np.append(np.nonzero(starts)[0], length)
        kind = narrow(Domain((domains[v].low, domains[v].high))).dtype
        levels.append(Level(v, column[first[:-1]].astype(kind), first))
    if len(levels[-1].values) == length:
        levels[-1].first = None
    return Trie(levels)
