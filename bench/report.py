"""What a run found: the data, its means, and JSON that can be read again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.measure import Timing
from bench.errors import UnreadableReport
from flashrnn.dims import Dims
from flashrnn.tolerance import Comparison

SCHEMA = 1


@dataclass(frozen=True)
class Machine:
    """Where it ran. load: processes that wanted to run just before, None if nobody knows."""

    fingerprint: str
    system: str
    python: str
    torch: str
    load: float | None


@dataclass(frozen=True)
class Kernel:
    """A kernel of ours that took part, and whether tuning or the cost model chose its tiling."""

    direction: str
    tuned: bool
    tiling: dict[str, int]


@dataclass(frozen=True)
class Measurement:
    """One implementation in one case: its samples, and the error of its worst result."""

    label: str
    timing: Timing
    error: Comparison


@dataclass(frozen=True)
class Row:
    """One case."""

    dims: Dims
    dtype: str
    kind: str
    kernels: tuple[Kernel, ...]
    ours: Measurement
    peers: tuple[Measurement, ...]

    def ratio(self, peer: Measurement) -> float:
        """The peer's median over ours: above 1 ours is faster."""
        return peer.timing.median / self.ours.timing.median


@dataclass(frozen=True)
class Mean:
    """Geometric mean of the ratios over the shapes of a suite."""

    kind: str
    peer: str
    ratio: float


@dataclass(frozen=True)
class Report:
    """A whole run. `seconds` is what each case was given, `when` is UTC."""

    suite: str
    when: str
    machine: Machine
    threads: int
    seconds: float
    rows: tuple[Row, ...]

    def means(self) -> list[Mean]:
        """For each kind of call and each peer, in the order of the rows."""
        ratios: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            for peer in row.peers:
                ratios.setdefault((row.kind, peer.label), []).append(row.ratio(peer))
        return [Mean(kind, peer, geometric_mean(r)) for (kind, peer), r in ratios.items()]


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of n >= 1 positive values: halves and doubles cancel out."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def write(report: Report, path: Path) -> None:
    """Write all of it as JSON, with what follows from it for those who read it elsewhere."""
    data = {"schema": SCHEMA, **asdict(report)}
    for row, written in zip(report.rows, data["rows"], strict=True):
        for peer, theirs in zip(row.peers, written["peers"], strict=True):
            theirs["ratio"] = row.ratio(peer)
        for one, told in zip((row.ours, *row.peers), _measurements(written), strict=True):
            told["median"], told["noise"] = one.timing.median, one.timing.noise
    data["geometric_means"] = [asdict(mean) for mean in report.means()]
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Report:
    """What `write` wrote. Raises UnreadableReport, OSError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise UnreadableReport(path, f"schema {data['schema']}, this version reads {SCHEMA}")
        return Report(
            data["suite"],
            data["when"],
            Machine(**data["machine"]),
            data["threads"],
            data["seconds"],
            tuple(_row(row) for row in data["rows"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UnreadableReport(path, f"{type(error).__name__}: {error}") from error


def _row(data: dict[str, Any]) -> Row:
    ours, *peers = (
        Measurement(m["label"], Timing(tuple(m["timing"]["samples"])), Comparison(**m["error"]))
        for m in _measurements(data)
    )
    kernels = tuple(Kernel(**kernel) for kernel in data["kernels"])
    return Row(Dims(**data["dims"]), data["dtype"], data["kind"], kernels, ours, tuple(peers))


def _measurements(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["ours"], *row["peers"]]
