"""The first and the best assignment of one component, without forming all of them.

Depth first over blocks of partial assignments: a block is extended by one variable at a time
(see `step`), split, and the first part is followed first, so that memory stays small and an
answer comes early. With an objective this is branch and bound: its variables come first, blocks
are ordered by the least it can still be (see `partial`), and what cannot beat the best is dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.clock import Clock
from constrint.columns import values
from constrint.expression import Expression, Variable
from constrint.partial import least_values
from constrint.plan import Component
from constrint.step import Columns, Step
from constrint.trie import completed

Array = npt.NDArray[Any]
Assignment = dict[Variable, int]

FIRST_BLOCK = 256
LAST_BLOCK = 1 << 15
"""Blocks begin small, for a first answer, and grow, for throughput."""

FORMED = 1 << 18
"""One extension forms about this many assignments at most, so that the clock is seen often."""


class Search:
    """A search for the assignment that makes ``objective`` least, or for any."""

    def __init__(
        self,
        component: Component,
        clock: Clock,
        objective: Expression | None = None,
        wanted: int = 1,
    ) -> None:
        """Without an objective, the search ends with ``wanted`` assignments in `found`."""
        self.component = component
        self.plan = component.plan
        self.clock = clock
        self.objective = objective
        self.best: Assignment | None = None
        self.least: int | None = None
        self.wanted = wanted
        self.found: list[Assignment] = []
        self.visited = 0
        """How many partial assignments were formed."""

    def run(self) -> Assignment | None:
        """The best assignment; None where there is none. `best` holds it when interrupted."""
        first: tuple[Variable, ...] = ()
        if self.objective is not None:
            here = set(self.component.variables)
            first = tuple(v for v in self.objective.variables() if v in here)
        if not self.component.tabulate():
            return None
        order = self.component.order(first)
        leaves = completed(self.component, order)
        steps: list[Step | None] = [None] * len(order)
        block = FIRST_BLOCK
        waiting: list[tuple[int, Columns, int]] = [(0, {}, 1)]
        while waiting:
            self.clock.check()
            depth, columns, rows = waiting.pop()
            if first and depth:
                columns, rows = self._promising(columns, rows, depth >= len(first))
                if rows == 0:
                    continue
            step = steps[depth]
            if step is None:
                live = order[: depth + 1]
                step = Step(self.component, order[depth], leaves[depth], block, live)
                steps[depth] = step
            most = max(1, FORMED // max(1, step.fan_out))
            if rows > most:
                rest = {v: column[most:] for v, column in columns.items()}
                waiting.append((depth, rest, rows - most))
                columns = {v: column[:most] for v, column in columns.items()}
                rows = most
            _, _, columns = step.extend(columns, rows)
            rows = len(columns[order[depth]])
            self.visited += rows
            if rows == 0:
                continue
            if depth + 1 == len(order):
                self._take(columns, rows)
                if self.objective is None and len(self.found) >= self.wanted:
                    return self.best
                continue
            block = min(LAST_BLOCK, block * 2)
            size = max(1, block // 16)
            for start in reversed(range(0, rows, size)):
                part = {v: column[start : start + size] for v, column in columns.items()}
                waiting.append((depth + 1, part, min(size, rows - start)))
        return self.best

    def _values(self, columns: Columns, rows: int) -> Array:
        assert self.objective is not None
        at = {}
        for v in self.objective.variables():
            column, low, high = self.plan.entry(v)
            at[v] = (column[columns[v]], low, high) if v in columns else (column, low, high)
        result, _, _, defined = values(self.objective, at)
        result = np.broadcast_to(np.asarray(result), rows)
        if defined is not True:
            result = np.where(defined, result.astype(object), np.inf)
        return result

    def _promising(self, columns: Columns, rows: int, whole: bool) -> tuple[Columns, int]:
        """The assignments that may still beat the best, best first.

        ``whole`` says that every variable of the objective has a value.
        """
        merit = self._values(columns, rows) if whole else self._bound(columns, rows)
        order = np.argsort(merit, kind="stable")
        if self.least is not None:
            order = order[merit[order] < self.least]
        return {v: column[order] for v, column in columns.items()}, len(order)

    def _bound(self, columns: Columns, rows: int) -> Array:
        """The least that the objective can become of each partial assignment."""
        assert self.objective is not None
        known, open_ = {}, {}
        for v in self.objective.variables():
            column, low, high = self.plan.entry(v)
            if v in columns:
                known[v] = (column[columns[v]], low, high)
            elif v in self.plan.constants:
                known[v] = (column, low, high)
            open_[v] = (low, high)
        return np.broadcast_to(np.asarray(least_values(self.objective, known, open_)), rows)

    def _take(self, columns: Columns, rows: int) -> None:
        chosen = 0
        if self.objective is None:
            self._keep(columns, min(rows, self.wanted - len(self.found)))
        else:
            merit = self._values(columns, rows)
            chosen = int(np.argmin(merit))
            if self.least is not None and merit[chosen] >= self.least:
                return
            self.least = merit[chosen]
        self.best = self._assignment(columns, chosen)

    def _keep(self, columns: Columns, rows: int) -> None:
        self.found += [self._assignment(columns, row) for row in range(rows)]

    def _assignment(self, columns: Columns, row: int) -> Assignment:
        return {
            v: int(self.plan.domains[v].array()[columns[v][row]]) for v in self.component.variables
        }
