"""What this library set out to reach on one core, and what a run found of it.

Ratios are medians of others over ours; means are geometric, over the nine shapes of
`bench.shapes.CPU`; forward and backward counts the gradients of the weights and of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.layers.problem import FORWARD, INNER_LAYER
from bench.layers.results import Measurement, Report, Row, geometric_mean
from bench.shapes import CPU, Shape

Pick = Callable[[Row], "Measurement | None"]


@dataclass(frozen=True)
class Goal:
    """Of a cell. rival: of forward and backward, by the beginning of its label.

    forward_rival: None for the fastest of all. at: the ratio at single shapes.
    """

    rival: str
    mean: float
    worst: float
    forward_rival: str | None
    forward_mean: float
    at: tuple[tuple[Shape, float], ...] = ()


_ELMAN = Goal("torch.nn", 5.5, 1.25, None, 1.0)
GOALS = {
    "lstm": Goal("torch.nn", 1.45, 0.93, None, 1.05),
    "gru": Goal("torch.nn", 6.0, 1.3, None, 1.1),
    "elman": _ELMAN,
    "elman_relu": _ELMAN,
    "slstm": Goal("eager loop", 6.0, 1.5, "jax.lax.scan", 2.0, ((Shape(1, 256, 64), 25.0),)),
}
SCALING = 1.7  # two threads over one, wherever there are two rows of one head
OVERHEAD_SECONDS = 90e-6  # of a call with autograd over its kernels


@dataclass(frozen=True)
class Line:
    """One goal and what was found: a ratio to be at least `goal`, or seconds to be at most that.

    where: the shape that decided. count: the shapes or cases that it rests on, of `wanted`.
    """

    subject: str
    what: str
    value: float
    goal: float
    unit: str = ""
    where: str = ""
    count: int = 1
    wanted: int = 1

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.unit else self.value >= self.goal

    @property
    def whole(self) -> bool:
        """Whether all that the goal speaks of was measured."""
        return self.count >= self.wanted


def lines(report: Report) -> list[Line]:
    """Every goal of which there is something in the report, cell by cell."""
    found: list[Line] = []
    for subject in dict.fromkeys(row.subject for row in report.rows):
        rows = [row for row in report.rows if row.subject == subject]
        goal = GOALS.get(rows[0].cell)
        if goal is not None:
            found += _against_peers(subject, [r for r in rows if r.threads == 1], goal)
        found += _scaling(subject, rows)
    for one in report.overheads:
        told = "call over bare kernels, forward+backward"
        found.append(Line(one.cell, told, one.seconds * 1e6, OVERHEAD_SECONDS * 1e6, "µs"))
    order = list(dict.fromkeys(line.subject for line in found))
    return sorted(found, key=lambda line: order.index(line.subject))


def _against_peers(subject: str, rows: list[Row], goal: Goal) -> Iterator[Line]:
    trained = _ratios(rows, INNER_LAYER.label, _named(goal.rival))
    both = f"forward+backward vs {goal.rival}"
    if trained:
        yield Line(subject, f"{both}, geometric mean", geometric_mean([*trained.values()]),
                   goal.mean, count=len(trained), wanted=len(CPU))  # fmt: skip
        shape = min(trained, key=lambda s: trained[s])
        yield Line(subject, f"{both}, worst shape", trained[shape], goal.worst, where=str(shape),
                   count=len(trained), wanted=len(CPU))  # fmt: skip
    for shape, ratio in goal.at:
        if shape in trained:
            yield Line(subject, f"{both} at {shape}", trained[shape], ratio)
    pick = _best if goal.forward_rival is None else _named(goal.forward_rival)
    ran = _ratios(rows, FORWARD.label, pick)
    if ran:
        rival = goal.forward_rival or "the best peer of all"
        yield Line(subject, f"forward vs {rival}, geometric mean", geometric_mean([*ran.values()]),
                   goal.forward_mean, count=len(ran), wanted=len(CPU))  # fmt: skip


def _ratios(rows: list[Row], kind: str, pick: Pick) -> dict[Shape, float]:
    """Of the goal's shapes only: others would make another mean."""
    found = {}
    for row in rows:
        peer = pick(row)
        if row.kind == kind and row.shape in CPU and peer is not None:
            found[row.shape] = row.ratio(peer)
    return found


def _best(row: Row) -> Measurement | None:
    return row.best


def _named(beginning: str) -> Pick:
    return lambda row: next((p for p in row.peers if p.label.startswith(beginning)), None)


def _scaling(subject: str, rows: list[Row]) -> Iterator[Line]:
    """Our time on one thread over that on two, the worst case."""
    one, two = (
        {(r.shape, r.kind): r.ours.timing.median for r in rows if r.threads == n} for n in (1, 2)
    )
    many = [key for key in one if key[0].B * rows[0].dims.N >= 2]
    both = [key for key in many if key in two]
    if both:
        shape, kind = worst = min(both, key=lambda key: one[key] / two[key])
        yield Line(
            subject, "two threads vs one, worst case", one[worst] / two[worst], SCALING,
            where=f"{shape} {kind.partition(',')[0]}", count=len(both), wanted=len(many),
        )  # fmt: skip
