"""The pictures of a run: ratios per shape, speeds under the machine's roofline."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.errors import NothingToDraw
from bench.layers import show
from bench.layers.results import Report, Row
from bench.layers.show import count
from bench.shapes import Shape

# Okabe and Ito's colours, which people of all kinds of sight can tell apart; an implementation
# keeps its own in every picture.
COLOURS = {
    "torch.nn": "#E69F00",
    "eager loop": "#999999",
    "torch.compile": "#D55E00",
    "onnxruntime": "#56B4E9",
    "openvino": "#0072B2",
    "jax.lax.scan": "#CC79A7",
}
OURS, INK, DIM, GRID = "#009E73", "#24292F", "#59636E", "#D8DEE4"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<", ">")
LEVEL_STYLES = {"l1": ":", "l2": "-.", "l3": "--", "memory": (0, (1, 3))}
DPI = 140


@dataclass(frozen=True)
class Picture:
    """A PNG. name: of its file; title and text: what it shows."""

    name: str
    title: str
    text: str
    png: bytes


def pictures(report: Report) -> Iterator[Picture]:
    """Bars for each cell and number of threads, then a roofline for each number of threads.

    Raises NothingToDraw.
    """
    if not report.rows:
        raise NothingToDraw("the report has no cases yet")
    pyplot = _pyplot()
    for subject, threads in dict.fromkeys((r.subject, r.threads) for r in report.rows):
        rows = [r for r in report.rows if (r.subject, r.threads) == (subject, threads)]
        if any(row.peers for row in rows):
            yield _bars(pyplot, subject, threads, rows)
    for threads in dict.fromkeys(row.threads for row in report.rows):
        if report.roof(threads) is not None:
            yield _roofline(pyplot, report, threads)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise NothingToDraw(
            f"pictures need matplotlib ({error}); install it: pip install 'flashrnn-compiler[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({
        "font.size": 9, "axes.edgecolor": GRID, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlelocation": "left", "axes.titleweight": "bold",
        "legend.frameon": False, "svg.fonttype": "none",
    })  # fmt: skip
    return pyplot


def _png(pyplot: Any, figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def _bars(pyplot: Any, subject: str, threads: int, rows: list[Row]) -> Picture:
    """How many times faster ours is than each peer, per shape, a panel for each kind of call."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure, axes = pyplot.subplots(
        len(kinds), 1, figsize=(11, 0.6 + 2.6 * len(kinds)), layout="constrained", squeeze=False
    )
    labels = sorted({peer.label for row in rows for peer in row.peers}, key=_rank)
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        _panel(axis, [row for row in rows if row.kind == kind], labels)
        axis.set_title(f"{subject}: {kind}")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=_colour(label)) for label in labels]
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    slug = "".join(c if c.isalnum() else "-" for c in subject.replace(", ", "-"))
    return Picture(
        f"bars-{slug}-{threads}",
        f"{subject}, {count(threads, 'thread')}",
        "Time of each implementation over flashrnn's, by shape (B, T, D). Bars that rise from the "
        "line at 1 are where flashrnn is faster, those that hang from it where it is slower; the "
        "scale is logarithmic.",
        _png(pyplot, figure),
    )


def _panel(axis: Any, rows: list[Row], labels: list[str]) -> None:
    labels = [label for label in labels if any(p.label == label for r in rows for p in r.peers)]
    width = 0.84 / max(1, len(labels))
    tops = [1.0]
    for at, row in enumerate(rows):
        for peer in row.peers:
            slot = labels.index(peer.label) - (len(labels) - 1) / 2
            ratio = row.ratio(peer)
            tops.append(ratio)
            place = at + slot * width
            axis.bar(place, ratio - 1, width * 0.92, bottom=1, color=_colour(peer.label), zorder=2)
            axis.annotate(
                _short(ratio), (place, ratio), (0, 2 if ratio >= 1 else -2),
                textcoords="offset points", ha="center", va="bottom" if ratio >= 1 else "top",
                fontsize=6.5, rotation=90 if len(labels) > 3 else 0,
                zorder=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axis.set_yscale("log", base=2)
    low, high = min(tops), max(tops)
    axis.set_ylim(min(0.6, low / 2.1), max(2.0, high * 2.2))
    ticks = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 2)]
    axis.set_yticks([t for t in ticks if axis.get_ylim()[0] <= t <= axis.get_ylim()[1]])
    axis.yaxis.set_major_formatter(lambda value, _at: f"{value:g}×")
    axis.axhline(1, color=OURS, linewidth=1.6, zorder=3)
    axis.grid(axis="y", color=GRID, linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.set_xticks(range(len(rows)), [_place(row.shape) for row in rows])
    axis.set_xlim(-0.6, len(rows) - 0.4)
    axis.set_xlabel("B, T, D", color=DIM, fontsize=8)
    axis.set_ylabel("flashrnn is faster by")


def _roofline(pyplot: Any, report: Report, threads: int) -> Picture:
    """Speeds of ours and of the best peer against operations per byte."""
    roof = report.roof(threads)
    assert roof is not None
    rows = [r for r in report.rows if r.threads == threads and r.work.flops]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure, axes = pyplot.subplots(
        1, max(1, len(kinds)), figsize=(11, 4.9), layout="constrained", squeeze=False, sharey=True
    )
    subjects = list(dict.fromkeys(row.subject for row in rows))
    span = [row.work.flops / row.work.bytes for row in rows] or [1.0]
    left, right = min(0.2, min(span) / 1.5), max(2.0, max(span) * 1.6)
    colours = pyplot.get_cmap("tab10")
    for axis, kind in zip(axes[0], kinds, strict=False):
        for name, level in roof.levels.items():
            xs = [left, roof.flops / level.rate, right]
            xs = [x for x in xs if x <= right]
            ys = [roof.bound(x, name) / 1e9 for x in xs]
            axis.plot(xs, ys, color=INK, linewidth=1, linestyle=LEVEL_STYLES[name], zorder=1,
                      label=f"{show.level_words(name)}: {level.rate / 1e9:.0f} GB/s")  # fmt: skip
        axis.axhline(roof.flops / 1e9, color=INK, linewidth=1.4, zorder=1)
        axis.annotate(f"multiply-adds: {roof.flops / 1e9:.0f} GFLOP/s", (left, roof.flops / 1e9),
                      (3, 3), textcoords="offset points", fontsize=8)  # fmt: skip
        for row in (r for r in rows if r.kind == kind):
            x, number = row.work.flops / row.work.bytes, subjects.index(row.subject)
            marker, colour = MARKERS[number % len(MARKERS)], colours(number % 10)
            speed = row.work.flops / row.ours.timing.median / 1e9
            axis.plot(x, speed, marker, color=colour, markersize=6, zorder=3)
            if row.best is not None:
                other = row.work.flops / row.best.timing.median / 1e9
                axis.plot(x, other, marker, color=colour, markersize=5, fillstyle="none", zorder=2)
                axis.plot([x, x], [other, speed], color=colour, linewidth=0.6, alpha=0.5, zorder=1)
        axis.set(xscale="log", yscale="log", title=kind, xlim=(left, right),
                 xlabel="operations per byte (R read in every step)")  # fmt: skip
        axis.grid(color=GRID, linewidth=0.5, which="major", zorder=0)
        axis.tick_params(which="both", length=0)
        axis.xaxis.set_major_formatter(_plain)
        axis.yaxis.set_major_formatter(_plain)
    axes[0][0].set_ylabel("GFLOP/s of the products")
    levels, names = axes[0][0].get_legend_handles_labels()
    for number, subject in enumerate(subjects):
        (handle,) = axes[0][0].plot(
            [], [], MARKERS[number % len(MARKERS)], color=colours(number % 10)
        )
        levels, names = [*levels, handle], [*names, subject]
    figure.legend(levels, names, loc="outside lower center", ncols=6)
    return Picture(
        f"roofline-{threads}",
        f"Roofline, {count(threads, 'thread')}",
        "Filled: flashrnn; hollow: the fastest peer of the same case. The lines are what this "
        "machine was measured to do: multiply-adds in registers, and reads from each level. "
        "Operations count the products only; bytes are those that one core moves if R is read "
        "in every step and everything else once.",
        _png(pyplot, figure),
    )


def _rank(label: str) -> int:
    """The order of the table of colours."""
    known = [at for at, name in enumerate(COLOURS) if label.startswith(name)]
    return known[0] if known else len(COLOURS)


def _colour(label: str) -> str:
    return next((c for name, c in COLOURS.items() if label.startswith(name)), INK)


def _plain(value: float, _at: int) -> str:
    """A tick's number as people write it."""
    return f"{value:g}"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"


def _place(shape: Shape) -> str:
    return f"{shape.B}, {shape.T}, {shape.D}"
