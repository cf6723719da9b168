"""What people see of a run, on a terminal or in a log. Losses are shown as they are."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from autotune.result import Result
from autotune.show import duration, spread
from bench.report import Report, Row
from flashrnn.dims import Dims

CALM = 0.05  # of a median: what it is uncertain by on a machine that is left alone


def report(out: Console, found: Report) -> None:
    """A table per kind of call, then the geometric means."""
    machine = found.machine
    out.print(f"suite {found.suite} on {machine.fingerprint}", soft_wrap=True)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    load = "unknown" if machine.load is None else f"{machine.load:.1f}"
    out.print(f"{threads}, torch {machine.torch}; load average at the start {load}")
    for kind in dict.fromkeys(row.kind for row in found.rows):
        _table(out, kind, [row for row in found.rows if row.kind == kind])
    table = Table("geometric mean of the ratio", "over", "ratio")
    for mean in found.means():
        table.add_row(mean.kind, mean.peer, _ratio(mean.ratio))
    out.print(table)
    out.print(
        "time: median of one call, input product included, ± half a 95% interval of the median; "
        "ratio: its time over flashrnn's, above 1 flashrnn is faster; "
        "error: of the worst result, against the eager loop in float64; "
        "tiling: tuned, or the cost model's default."
    )
    noise = max(m.timing.noise / m.timing.median for r in found.rows for m in (r.ours, *r.peers))
    if noise > CALM:
        out.print(f"Caution: medians are uncertain by up to {100 * noise:.0f}%: a busy machine?")


def _table(out: Console, kind: str, rows: list[Row]) -> None:
    table = Table("shape", "implementation", "time", "ratio", "error", "tiling", title=kind)
    for row in rows:
        ours = row.ours
        shape = f"{_shape(row.dims)} {row.dtype}"
        error = f"{ours.error.error:.1e}"
        table.add_row(shape, ours.label, spread(ours.timing), "", error, _tiling(row))
        for peer in row.peers:
            ratio = _ratio(row.ratio(peer))
            table.add_row("", peer.label, spread(peer.timing), ratio, f"{peer.error.error:.1e}")
        table.add_section()
    out.print(table)


def tuned(out: Console, dims: Dims, found: Result) -> None:
    """One line on one search."""
    chosen = "the model's default" if found.is_default else "better than the model's default"
    time = duration(found.seconds)
    words = f"{_shape(dims)} {found.name}: {found.description}, {time} ({chosen})"
    out.print(words, soft_wrap=True)


def _shape(dims: Dims) -> str:
    heads = f" N={dims.N}" if dims.N > 1 else ""
    return f"B={dims.B} T={dims.T}{heads} D={dims.D}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}"


def _tiling(row: Row) -> str:
    """Whether tuning chose: one word where it is so for all kernels of the row."""
    words = {k.direction: "tuned" if k.tuned else "default" for k in row.kernels}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{direction} {word}" for direction, word in words.items())
