"""One more variable: partial assignments extended by every value that the constraints allow.

The tabulated constraints that the new variable completes are joined into one table from the
values of the variables before it (the separator) to the allowed values, so that assignments
which they forbid are never formed. The other constraints filter the extended columns.
Columns hold positions in the domains, in the narrowest type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.columns import WIDE, truth, values
from constrint.constraint import Constraint
from constrint.expression import Expression, Variable
from constrint.plan import Component, Leaf

Array = npt.NDArray[Any]
Columns = dict[Variable, Array]

JOINED = 1 << 16
"""The joined table of one step has at most this many entries."""


def narrowest(count: int) -> type[np.unsignedinteger[Any]]:
    """The narrowest unsigned type for positions 0 .. count-1."""
    return np.uint8 if count <= 256 else np.uint16 if count <= 65536 else np.uint32


class Step:
    """The extension of partial assignments by ``variable``.

    ``leaves`` are the constraints completed by it, ``rows`` is how many assignments are to be
    extended (a guess is enough), ``live`` the variables whose columns are needed afterwards.
    """

    def __init__(
        self,
        component: Component,
        variable: Variable,
        leaves: Sequence[Leaf],
        rows: int,
        live: Sequence[Variable],
    ) -> None:
        self.plan = component.plan
        self.variable = variable
        self.live = [v for v in live if v is not variable]
        self.keeps_own = any(v is variable for v in live)
        self.count = len(self.plan.domains[variable])
        joined, self.looked_up = self._choose_joined(leaves, rows)
        self.filters = [leaf for leaf in leaves if leaf.grid is None]
        self.match: Leaf | None = None
        if not joined:
            self._match()
        if self.match is None:
            self._join(joined)

    def _choose_joined(
        self, leaves: Sequence[Leaf], rows: int
    ) -> tuple[list[Leaf], list[tuple[Leaf, dict[Variable, int]]]]:
        """Which tables to join (those that forbid most first), and which to look up by row."""
        tabulated = sorted((x for x in leaves if x.grid is not None), key=lambda x: x.share)
        room = min(JOINED, max(1 << 10, 4 * rows * self.count))
        separator: dict[Variable, None] = {}
        cells = self.count
        joined: list[Leaf] = []
        looked_up = []
        for leaf in tabulated:
            new = [v for v in leaf.scope if v is not self.variable and v not in separator]
            grown = cells
            for v in new:
                grown *= len(self.plan.domains[v])
            if grown <= room or not joined:
                cells = grown
                separator.update(dict.fromkeys(new))
                joined.append(leaf)
            else:
                looked_up.append((leaf, self._strides(leaf.scope)))
        self.separator = list(separator)
        return joined, looked_up

    def _strides(self, scope: Iterable[Variable]) -> dict[Variable, int]:
        strides, stride = {}, 1
        for v in reversed(list(scope)):
            strides[v] = stride
            stride *= len(self.plan.domains[v])
        return strides

    def _match(self) -> None:
        """Prepares the look-up of the variable in an equality which it has a side of."""
        matching = [leaf for leaf in self.filters if self.variable in leaf.matches]
        if not matching:
            return
        own = matching[0].matches[self.variable][0]
        column, _, _, defined = values(own, {v: self.plan.entry(v) for v in own.variables()})
        if column.dtype == object:
            return
        self.match = matching[0]
        self.filters = [leaf for leaf in self.filters if leaf is not self.match]
        order = np.argsort(column, kind="stable")
        if defined is not True:
            order = order[np.broadcast_to(defined, column.shape)[order]]
        self.match_keys = column[order]
        self.choices = order.astype(narrowest(self.count))
        self.fan_out = 4

    def _matched(self, columns: Columns, rows: int) -> tuple[Array, Array]:
        """Where in `choices` the matches of each row begin, and how many they are."""
        assert self.match is not None
        other = self.match.matches[self.variable][1]
        wanted, _, _, defined = values(other, self._entries(other, columns))
        wanted = np.broadcast_to(np.asarray(wanted), rows)
        if wanted.dtype == object:
            # What lies beyond the keys equals none of them.
            wanted = np.clip(wanted, -WIDE - 1, WIDE + 1).astype(np.int64)
        starts = np.asarray(np.searchsorted(self.match_keys, wanted, "left"))
        counts = np.asarray(np.searchsorted(self.match_keys, wanted, "right")) - starts
        return starts, (counts if defined is True else np.where(defined, counts, 0))

    def _join(self, leaves: list[Leaf]) -> None:
        """Tables `counts` and `starts` by separator position, into the list of `choices`."""
        self.strides = self._strides(self.separator)
        self.fan_out = self.count
        if not leaves:
            self.choices = np.arange(self.count, dtype=narrowest(self.count))
            return
        order = [*self.separator, self.variable]
        shape = [len(self.plan.domains[v]) for v in order]
        grid: Array | None = None
        for leaf in leaves:
            assert leaf.grid is not None
            inside = [v for v in order if v in leaf.scope]
            part = leaf.grid.transpose([leaf.scope[v] for v in inside])
            part = part.reshape(
                [n if v in leaf.scope else 1 for v, n in zip(order, shape, strict=True)]
            )
            grid = part if grid is None else grid & part
        assert grid is not None
        if grid.shape != tuple(shape):
            grid = np.broadcast_to(grid, shape)
        table = grid.reshape(-1, self.count)
        self.counts = np.add.reduce(table, axis=1, dtype=np.intp)
        self.starts = np.cumsum(self.counts) - self.counts
        self.choices = np.nonzero(table)[1].astype(narrowest(self.count))
        self.fan_out = int(self.counts.max())

    def extend(self, columns: Columns, rows: int) -> tuple[Array, Array, Columns]:
        """Extends ``rows`` assignments, of which ``columns`` holds the live positions.

        Returns how many extensions each of them has, the positions of the new variable in all
        extensions, and the columns of the live variables.
        """
        if self.separator or self.match is not None:
            if self.match is not None:
                starts, counts = self._matched(columns, rows)
            else:
                key = _key(columns, self.strides)
                starts, counts = self.starts[key], self.counts[key]
            ends = np.cumsum(counts)
            total = int(ends[-1])
            place = np.arange(total)
            place += np.repeat(starts - (ends - counts), counts)
            chosen = self.choices[place]
        else:
            counts = np.full(rows, len(self.choices))
            chosen = self.choices if rows == 1 else np.tile(self.choices, rows)
        needed = set(self.live)
        for leaf in self.filters:
            needed.update(leaf.scope)
        for leaf, _ in self.looked_up:
            needed.update(leaf.scope)
        needed.discard(self.variable)
        longer = {v: np.repeat(columns[v], counts) for v in needed if v in columns}
        longer[self.variable] = chosen
        for leaf, strides in self.looked_up:
            assert leaf.grid is not None
            held = leaf.grid.reshape(-1)[_key(longer, strides)]
            counts, longer = _kept(counts, longer, held)
        for leaf in self.filters:
            held = truth(leaf.constraint, self._entries(leaf.constraint, longer))
            if isinstance(held, np.ndarray) and held.ndim:
                counts, longer = _kept(counts, longer, held)
            elif not held:
                counts, longer = _kept(counts, longer, np.zeros(len(chosen), dtype=bool))
            chosen = longer[self.variable]
        chosen = longer[self.variable]
        kept = {v: longer[v] for v in self.live}
        if self.keeps_own:
            kept[self.variable] = chosen
        return counts, chosen, kept

    def _entries(self, node: Constraint | Expression, columns: Columns) -> dict[Variable, Any]:
        entries = {}
        for v in node.variables():
            column, low, high = self.plan.entry(v)
            entries[v] = (column[columns[v]], low, high) if v in columns else (column, low, high)
        return entries


def _key(columns: Columns, strides: dict[Variable, int]) -> Array:
    """The mixed-radix position of each row in a table over the variables of ``strides``."""
    key: Array | None = None
    for v, stride in strides.items():
        part = columns[v].astype(np.intp)
        if stride != 1:
            part *= stride
        key = part if key is None else key + part
    assert key is not None
    return key


def _kept(counts: Array, columns: Columns, held: Array) -> tuple[Array, Columns]:
    """The extensions where ``held`` is true, and how many of each row these are."""
    before = np.concatenate(([0], np.cumsum(held)))
    ends = np.cumsum(counts)
    counts = before[ends] - before[ends - counts]
    return counts, {v: column[held] for v, column in columns.items()}
