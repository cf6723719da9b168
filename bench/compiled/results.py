"""What the suite finds out, as data: one row per kernel and GPU, and the figures over all rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import files
from bench.errors import UnreadableReport

SUITE = "compile"
ALTERNATING = "alternating"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One problem for one GPU, the product that stands for its architecture."""

    cell: str
    dtype: str
    head_dim: int
    device: str
    sm: int

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} D={self.head_dim} sm_{self.sm}"


@dataclass(frozen=True)
class Row:
    """One kernel of a case: the first choice of the first schedule that fits, and what compiling
    left as the best.

    `direction` is the kernel's name without the cell: "forward". `chosen_schedule` is another than
    `schedule` where the compiler spills in all of that one's candidates. `forced_by` says what
    rules out the schedules before the chosen one, "" for the first. `first` and `chosen` are
    `autotune.compiling.Attempt.facts`, `tried` counts what was compiled. `problem` is the kernel's
    own key, which tells whether a stored row is out of date.
    """

    case: Case
    direction: str
    schedule: str
    chosen_schedule: str
    forced_by: str
    first: Facts
    chosen: Facts
    tried: int
    problem: Facts

    @property
    def right_at_first(self) -> bool:
        return clean(self.first)

    @property
    def right_after(self) -> bool:
        return clean(self.chosen)

    @property
    def fused(self) -> bool:
        """Whether the first choice is; whether the chosen one is: `stays_fused`."""
        return self.schedule != ALTERNATING

    @property
    def stays_fused(self) -> bool:
        return self.chosen_schedule != ALTERNATING


@dataclass(frozen=True)
class Results:
    """All rows so far; `versions` of what compiled them, `date` of the last one."""

    versions: dict[str, str]
    date: str
    rows: tuple[Row, ...]
    suite: str = field(default=SUITE)


@dataclass(frozen=True)
class Errors:
    """Relative errors of a prediction over the kernels that were compiled."""

    median: float
    worst: float
    worst_case: str


def clean(attempt: Facts) -> bool:
    """Whether it compiled, launches and spills nothing."""
    actual = attempt["actual"]
    if actual is None or attempt["seconds"] is None:
        return False
    return not (actual["spill_store_bytes"] or actual["spill_load_bytes"])


def share(rows: Sequence[Row], what: str) -> float:
    """The part of the rows of which a property holds, 1 where there are none."""
    return statistics.mean(getattr(row, what) for row in rows) if rows else 1.0


def errors(rows: Sequence[Row], what: str) -> Errors | None:
    """Of "registers" or "shared_bytes", at the first choice; None where nothing was compiled."""
    found = []
    for row in rows:
        actual = row.first["actual"]
        if actual is not None and actual[what]:
            predicted = row.first["predicted"][what]
            found.append(((predicted - actual[what]) / actual[what], f"{row.case} {row.direction}"))
    if not found:
        return None
    worst, case = max(found, key=lambda pair: abs(pair[0]))
    return Errors(statistics.median(abs(error) for error, _ in found), worst, case)


def too_low(rows: Sequence[Row]) -> list[Row]:
    """Rows whose shared memory was predicted below what the kernel takes."""
    return [
        row
        for row in rows
        if row.first["actual"] is not None
        and row.first["predicted"]["shared_bytes"] < row.first["actual"]["shared_bytes"]
    ]


def largest_fused(rows: Sequence[Row]) -> dict[tuple[str, str, str, int], int]:
    """(cell, dtype, direction, sm) -> the largest D of the rows that a fused kernel reaches."""
    largest: dict[tuple[str, str, str, int], int] = {}
    for row in rows:
        key = (row.case.cell, row.case.dtype, row.direction, row.case.sm)
        reached = row.case.head_dim if row.stays_fused and row.right_after else 0
        largest[key] = max(largest.get(key, 0), reached)
    return largest


def write(results: Results, path: Path) -> None:
    files.write(path, asdict(results))


def read(path: Path) -> Results:
    """What `write` wrote. Raises UnreadableReport, OSError."""
    data = files.read(path)
    try:
        rows = tuple(Row(**{**row, "case": Case(**row["case"])}) for row in data["rows"])
        return Results(versions=data["versions"], date=data["date"], rows=rows)
    except (KeyError, TypeError) as error:
        raise UnreadableReport(path, f"{type(error).__name__}: {error}") from error
