"""What a run found: the data, its means, and JSON that can be read again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autotune.measure import Timing
from bench import files
from bench.errors import UnreadableReport
from bench.layers.overhead import Overhead
from bench.machine import Machine
from bench.peers import Missing
from bench.roofline import Level, Roof
from bench.shapes import Shape
from flashrnn.dims import Dims
from flashrnn.tolerance import Comparison

SCHEMA = 2


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
class Work:
    """flops: of the products. bytes: moved where R is read in every step. weights: bytes of R."""

    flops: int
    bytes: int
    weights: int


@dataclass(frozen=True)
class Row:
    """One case. subject: the cell and its heads; inputs: "x", or "Wx" where no product is done."""

    subject: str
    cell: str
    inputs: str
    dims: Dims
    dtype: str
    kind: str
    threads: int
    work: Work
    kernels: tuple[Kernel, ...]
    ours: Measurement
    peers: tuple[Measurement, ...]

    @property
    def shape(self) -> Shape:
        return Shape.of(self.dims)

    @property
    def best(self) -> Measurement | None:
        """The fastest peer."""
        return min(self.peers, key=lambda peer: peer.timing.median, default=None)

    def ratio(self, peer: Measurement) -> float:
        """The peer's median over ours: above 1 ours is faster."""
        return peer.timing.median / self.ours.timing.median


@dataclass(frozen=True)
class Mean:
    """Geometric mean of the ratios over the shapes."""

    subject: str
    threads: int
    kind: str
    peer: str
    ratio: float
    shapes: int


@dataclass(frozen=True)
class Report:
    """A run, or what there is of it. `seconds` is what each case was given, `when` is UTC.

    cases: how many there are to be; fewer rows are an interrupted run, or one out of time.
    notes: on the peers that take part, by label.
    """

    suite: str
    when: str
    machine: Machine
    seconds: float
    cases: int
    notes: dict[str, str]
    missing: tuple[Missing, ...] = ()
    roofs: tuple[Roof, ...] = ()
    overheads: tuple[Overhead, ...] = ()
    rows: tuple[Row, ...] = ()

    def with_row(self, row: Row) -> Report:
        return replace(self, rows=(*self.rows, row))

    def means(self) -> list[Mean]:
        """For each subject, number of threads, kind and peer, in the order of the rows."""
        ratios: dict[tuple[str, int, str, str], list[float]] = {}
        for row in self.rows:
            for peer in row.peers:
                key = (row.subject, row.threads, row.kind, peer.label)
                ratios.setdefault(key, []).append(row.ratio(peer))
        return [Mean(*key, geometric_mean(r), len(r)) for key, r in ratios.items()]

    def roof(self, threads: int) -> Roof | None:
        return next((roof for roof in self.roofs if roof.threads == threads), None)

    def share(self, row: Row, one: Measurement) -> float | None:
        """Its speed over the roofline's bound, R being read from the smallest level that holds it.

        None without products, or where the machine was not measured.
        """
        roof, work = self.roof(row.threads), row.work
        if roof is None or not work.flops:
            return None
        bound = roof.bound(work.flops / work.bytes, roof.home(work.weights))
        return work.flops / one.timing.median / bound


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
    files.write(path, data)


def read(path: Path) -> Report:
    """What `write` wrote. Raises UnreadableReport, OSError."""
    data = files.read(path)
    try:
        if data["schema"] != SCHEMA:
            raise UnreadableReport(path, f"schema {data['schema']}, this version reads {SCHEMA}")
        return Report(
            data["suite"],
            data["when"],
            Machine(**data["machine"]),
            data["seconds"],
            data["cases"],
            dict(data["notes"]),
            tuple(Missing(**one) for one in data["missing"]),
            tuple(_roof(one) for one in data["roofs"]),
            tuple(
                Overhead(one["cell"], _timing(one["call"]), _timing(one["bare"]))
                for one in data["overheads"]
            ),
            tuple(_row(one) for one in data["rows"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableReport(path, f"{type(error).__name__}: {error}") from error


def _roof(data: dict[str, Any]) -> Roof:
    levels = {name: Level(**level) for name, level in data["levels"].items()}
    return Roof(data["threads"], data["flops"], levels)


def _timing(data: dict[str, Any]) -> Timing:
    return Timing(tuple(data["samples"]))


def _row(data: dict[str, Any]) -> Row:
    ours, *peers = (
        Measurement(m["label"], _timing(m["timing"]), Comparison(**m["error"]))
        for m in _measurements(data)
    )
    words = {name: data[name] for name in ("subject", "cell", "inputs", "dtype", "kind", "threads")}
    return Row(
        dims=Dims(**data["dims"]),
        work=Work(**data["work"]),
        kernels=tuple(Kernel(**kernel) for kernel in data["kernels"]),
        ours=ours,
        peers=tuple(peers),
        **words,
    )


def _measurements(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["ours"], *row["peers"]]
