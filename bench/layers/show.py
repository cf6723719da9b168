"""What people see of a run, on a terminal or in a log. Losses are shown as they are."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from autotune.result import Result
from autotune.show import duration, spread
from bench.layers import goals
from bench.layers.goals import Line
from bench.layers.results import Measurement, Report, Row
from bench.roofline import Roof
from flashrnn.dims import Dims

CALM = 0.05  # of a median: what it is uncertain by on a machine that is left alone

LEGEND = (
    "time: median of one call, ± half a 95% interval of the median; inputs x: the input product is "
    "a part of it for everyone, Wx: for no one; ratio: its time over flashrnn's, above 1 flashrnn "
    "is faster; GFLOP/s: of the products; roof: that over what the measured machine admits if R is "
    "read in every step from the smallest cache that holds it; error: of the worst result, against "
    "float64; tiling: tuned, or the cost model's default."
)


def report(out: Console, found: Report) -> None:
    """A table per cell, threads and kind of call, then the means, the limits and the goals."""
    for line in facts(found):
        out.print(line, soft_wrap=True)
    groups = dict.fromkeys((r.subject, r.kind, r.threads) for r in found.rows)
    for subject, kind, threads in groups:
        rows = [r for r in found.rows if (r.subject, r.kind, r.threads) == (subject, kind, threads)]
        _table(out, f"{subject}, {kind}, {count(threads, 'thread')}", found, rows)
    if found.rows:
        _means(out, found)
        out.print(LEGEND)
    for roof in found.roofs:
        out.print(roof_words(roof), soft_wrap=True)
    _goals(out, goals.lines(found))
    uncertain = noise(found)
    if uncertain > CALM:
        told = f"Caution: medians are uncertain by up to {100 * uncertain:.0f}%: a busy machine?"
        out.print(told)


def facts(found: Report) -> list[str]:
    """Where it ran, who was missing, and whether it is whole."""
    machine = found.machine
    load = "unknown" if machine.load is None else f"{machine.load:.1f}"
    lines = [
        f"suite {found.suite} on {machine.fingerprint}",
        f"torch {machine.torch}, Python {machine.python}, {machine.system}; {found.when}; "
        f"load average at the start {load}",
    ]
    lines += [f"{label}: {note}" for label, note in found.notes.items()]
    lines += [f"{one.label} takes no part: {one.why}" for one in found.missing]
    if len(found.rows) < found.cases:
        lines.append(f"incomplete: {len(found.rows)} of {found.cases} cases")
    return lines


def noise(found: Report) -> float:
    """What the most uncertain median is uncertain by, relative to it."""
    every = [m.timing for r in found.rows for m in (r.ours, *r.peers)]
    return max((timing.noise / timing.median for timing in every), default=0.0)


def roof_words(roof: Roof) -> str:
    """The machine's limits in a line."""
    rates = ", ".join(
        f"{level_words(name)} {level.rate / 1e9:.0f}" for name, level in roof.levels.items()
    )
    return (
        f"measured peak, {count(roof.threads, 'thread')}: {roof.flops / 1e9:.0f} GFLOP/s float32; "
        f"reads in GB/s: {rates}"
    )


def level_words(name: str) -> str:
    """A level as people write it."""
    return name.upper() if name.startswith("l") else name


def _table(out: Console, title: str, found: Report, rows: list[Row]) -> None:
    names = ("shape", "implementation", "time", "ratio", "GFLOP/s", "roof", "error", "tiling")
    table = Table(*names, title=title)
    for row in rows:
        for one in (row.ours, *row.peers):
            ours = one is row.ours
            table.add_row(
                f"{shape_words(row.dims)} {row.dtype} {row.inputs}" if ours else "",
                one.label,
                spread(one.timing),
                "" if ours else ratio(row.ratio(one)),
                speed(row, one),
                share(found, row, one),
                f"{one.error.error:.1e}",
                tiling(row) if ours else "",
            )
        table.add_section()
    out.print(table)


def _means(out: Console, found: Report) -> None:
    table = Table("geometric mean of the ratio", "threads", "over", "ratio", "shapes")
    for mean in found.means():
        what = f"{mean.subject}, {mean.kind}"
        table.add_row(what, f"{mean.threads}", mean.peer, ratio(mean.ratio), f"{mean.shapes}")
    out.print(table)


def _goals(out: Console, lines: list[Line]) -> None:
    if not lines:
        return
    table = Table("cell", "goal", "found", "wanted", "", title="goals, float32, one thread")
    for line in lines:
        what = f"{line.what} ({line.where})" if line.where else line.what
        table.add_row(line.subject, what, value(line), bound(line), verdict(line))
    out.print(table)


def value(line: Line) -> str:
    return f"{line.value:.0f} {line.unit}" if line.unit else ratio(line.value)


def bound(line: Line) -> str:
    return f"≤ {line.goal:.0f} {line.unit}" if line.unit else f"≥ {ratio(line.goal)}"


def verdict(line: Line) -> str:
    """One word, and what is lacking for it to count."""
    word = "met" if line.met else "missed"
    return word if line.whole else f"{word} ({line.count} of {line.wanted} measured)"


def tuned(out: Console, dims: Dims, threads: int, found: Result) -> None:
    """One line on one search."""
    chosen = "the model's default" if found.is_default else "better than the model's default"
    time = duration(found.seconds)
    words = f"{shape_words(dims)} {count(threads, 'thread')} {found.name}: {found.description}"
    out.print(f"{words}, {time} ({chosen})", soft_wrap=True)


def shape_words(dims: Dims) -> str:
    heads = f" N={dims.N}" if dims.N > 1 else ""
    return f"B={dims.B} T={dims.T}{heads} D={dims.D}"


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def ratio(value: float) -> str:
    """Three digits or so."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def tiling(row: Row) -> str:
    """Whether tuning chose: one word where it is so for all kernels of the row."""
    words = {k.direction: "tuned" if k.tuned else "default" for k in row.kernels}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{direction} {word}" for direction, word in words.items())


def speed(row: Row, one: Measurement) -> str:
    """GFLOP/s of the products, where there are any."""
    rate = row.work.flops / one.timing.median / 1e9
    return f"{rate:.3g}" if row.work.flops else "-"


def share(found: Report, row: Row, one: Measurement) -> str:
    """Speed over what the roofline admits, where the machine was measured."""
    part = found.share(row, one)
    return "-" if part is None else f"{100 * part:.0f}%"
