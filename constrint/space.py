"""The set of all solutions: a product of prefix trees that is never multiplied out unasked.

Solutions are numbered 0 .. count-1. Counting, indexing, sampling and membership cost what the
factors cost, however many solutions their product has.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from constrint.domain import Domain
from constrint.errors import ModelError
from constrint.trie import Trie, narrow, projected

Array = npt.NDArray[Any]
Config = dict[str, int]

REPEATED = 1 << 12
"""Short periods of a column are repeated to this length before they are copied on."""


class Space:
    """All solutions of a model; see `Model.enumerate`."""

    def __init__(
        self, names: Sequence[str], constants: Mapping[str, int], factors: Sequence[Trie] | None
    ) -> None:
        """``factors`` is None where there is no solution."""
        self.names = tuple(names)
        self._constants = dict(constants)
        # The largest factor varies fastest: columns are then copied in long runs.
        self._factors = sorted(factors or [], key=lambda trie: trie.count)
        self._count = 0 if factors is None else prod(trie.count for trie in self._factors)
        self._home = {
            level.variable.name: (k, level)
            for k, trie in enumerate(self._factors)
            for level in trie.levels
        }

    def count(self) -> int:
        """The number of solutions, of any size."""
        return self._count

    def onto(self, names: Iterable[str]) -> Space:
        """The distinct assignments of the variables ``names`` that solutions have, as a space.

        Costs a sort of the solutions of each component that is kept in part; no component is
        multiplied with another. ModelError for a name that is not a variable of this space.
        """
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if name not in self.names:
                raise ModelError(f"no variable {name!r}; there are {', '.join(self.names)}")
        constants = {n: v for n, v in self._constants.items() if n in wanted}
        if not self._count:
            return Space(wanted, constants, None)
        factors = []
        for trie in self._factors:
            kept = [level for level in trie.levels if level.variable.name in wanted]
            if kept:
                factors.append(projected(trie, kept))
        return Space(wanted, constants, factors)

    def __len__(self) -> int:
        if self._count > sys.maxsize:
            raise OverflowError(f"len() cannot return {self._count}: use space.count()")
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __getitem__(self, position: Any) -> Any:
        """The solution at ``position``, or the list of solutions of a slice."""
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        wanted = position.__index__()
        at = wanted + self._count if wanted < 0 else wanted
        if not 0 <= at < self._count:
            raise IndexError(f"solution {wanted} of a space of {self._count}")
        rows = self._rows(at)
        found = {
            level.variable.name: int(trie.take(level, np.array([row]))[0])
            for trie, row in zip(self._factors, rows, strict=True)
            for level in trie.levels
        }
        found.update(self._constants)
        return {name: found[name] for name in self.names}

    def __iter__(self) -> Iterator[Config]:
        for chunk in self.chunks(1 << 12):
            columns = [chunk[name].tolist() for name in self.names]
            for row in zip(*columns, strict=True):
                yield dict(zip(self.names, row, strict=True))
        if not self.names and self._count:
            yield {}

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, Mapping) or set(config) != set(self.names):
            return False
        return self._position(config) is not None

    def index(self, config: Any, start: int = 0, stop: int | None = None) -> int:
        """The number of the solution ``config``; ValueError where it is none."""
        if set(config) != set(self.names):
            raise ModelError(
                f"a configuration of this space has the variables {', '.join(self.names)}; "
                f"got {', '.join(config)}"
            )
        position = self._position(config)
        if position is None or position < start or (stop is not None and position >= stop):
            raise ValueError(f"{dict(config)} is not a solution")
        return position

    def columns(self) -> dict[str, Array]:
        """A column per variable, in the narrowest signed type, one row per solution."""
        total = len(self)
        result: dict[str, Array] = {}
        outer, placed = 1, {}
        for k, trie in enumerate(self._factors):
            outer *= trie.count
            placed[k] = (outer // trie.count, total // outer if total else 0)
        for name in self.names:
            if name in self._constants:
                value = self._constants[name]
                result[name] = np.full(total, value, dtype=_constant_type(value))
            elif total == 0:
                result[name] = np.empty(0, dtype=np.int8)
            else:
                k, level = self._home[name]
                times, run = placed[k]
                result[name] = _spread(self._factors[k].column(level), times, run)
        return result

    def chunks(self, size: int = 1 << 16) -> Iterator[dict[str, Array]]:
        """The columns of `columns`, ``size`` rows at a time, in bounded memory."""
        if size < 1:
            raise ModelError(f"a chunk of {size} rows: the size must be at least 1")
        for start in range(0, self._count, size):
            yield self.slice(start, min(self._count, start + size))

    def slice(self, start: int, stop: int) -> dict[str, Array]:
        """The columns of the solutions start .. stop-1."""
        length = stop - start
        result = {
            name: np.full(length, value, dtype=_constant_type(value))
            for name, value in self._constants.items()
        }
        run = self._count
        for trie in self._factors:
            run //= trie.count
            first, last = start // run, (stop - 1) // run
            repeats = np.full(last - first + 1, min(run, length))
            repeats[0] = min((first + 1) * run, stop) - start
            repeats[-1] = stop - max(last * run, start)
            low = first % trie.count
            high = low + last - first + 1
            for level in trie.levels:
                if high <= trie.count:
                    part = trie.slice(level, low, high)
                else:
                    part = trie.take(level, np.arange(low, high) % trie.count)
                result[level.variable.name] = part if run == 1 else np.repeat(part, repeats)
        return {name: result[name] for name in self.names}

    def sample(self, n: int, seed: int | None = None) -> list[Config]:
        """``n`` different solutions, each subset equally likely; the same for the same seed."""
        if not 0 <= n <= self._count:
            raise ModelError(f"a sample of {n} from a space of {self._count} solutions")
        generator = random.Random(seed)
        if self._count <= sys.maxsize:
            return [self[i] for i in generator.sample(range(self._count), n)]
        chosen: dict[int, None] = {}
        while len(chosen) < n:
            chosen[generator.randrange(self._count)] = None
        return [self[i] for i in chosen]

    def neighbours(self, config: Mapping[str, int]) -> list[Config]:
        """The solutions that differ from the solution ``config`` in exactly one variable."""
        self.index(config)
        found = []
        for name in self.names:
            if name in self._constants:
                continue
            k, level = self._home[name]
            for value in np.unique(level.values).tolist():
                other = {**config, name: value}
                if value != config[name] and self._row(k, other) is not None:
                    found.append({n: other[n] for n in self.names})
        return found

    def _rows(self, position: int) -> list[int]:
        rows = []
        for trie in reversed(self._factors):
            position, row = divmod(position, trie.count)
            rows.append(row)
        return rows[::-1]

    def _row(self, k: int, config: Mapping[str, int]) -> int | None:
        trie = self._factors[k]
        return trie.find({level.variable: config[level.variable.name] for level in trie.levels})

    def _position(self, config: Mapping[str, Any]) -> int | None:
        if self._count == 0 or any(config[n] != v for n, v in self._constants.items()):
            return None
        if not all(isinstance(v, int | np.integer) for v in config.values()):
            return None
        position = 0
        for k, trie in enumerate(self._factors):
            row = self._row(k, {name: int(v) for name, v in config.items()})
            if row is None:
                return None
            position = position * trie.count + row
        return position


def _constant_type(value: int) -> Any:
    return narrow(Domain((value,))).dtype


def _spread(column: Array, times: int, run: int) -> Array:
    """``column`` with each entry repeated ``run`` times, and all of that ``times`` times."""
    period = column if run == 1 else np.repeat(column, run)
    if times == 1:
        return period.copy() if period is column else period
    result = np.empty(times * len(period), dtype=column.dtype)
    filled = len(period)
    result[:filled] = period
    while filled < len(result) and filled < REPEATED:
        more = min(filled, len(result) - filled)
        result[filled : filled + more] = result[:more]
        filled += more
    whole = len(result) // filled * filled
    result[filled:whole].reshape(-1, filled)[:] = result[:filled]
    result[whole:] = result[: len(result) - whole]
    return result
