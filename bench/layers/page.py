"""A run as one HTML page that needs nothing else: no network, the pictures inside."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from autotune.show import duration
from bench import files
from bench.layers import goals, plots, show
from bench.layers.goals import Line
from bench.layers.plots import Picture
from bench.layers.results import Report, Row

STYLE = """
:root { --ink: #24292f; --dim: #59636e; --line: #d8dee4; --ours: #007a58; --bad: #b35900; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; background: #fff; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .2rem; }
p { max-width: 62rem; margin: .4rem 0 .8rem; }
.dim { color: var(--dim); font-size: .87rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; margin: .8rem 0; }
th { text-align: left; color: var(--dim); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: .3rem .7rem; vertical-align: baseline; }
td { border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.first td { border-top: 2px solid var(--line); }
.chip { display: inline-block; border-radius: 1rem; padding: 0 .6rem; font-weight: 600;
  font-size: .8rem; white-space: nowrap; }
.met { background: #dff5ea; color: var(--ours); }
.missed { background: #fdebd9; color: var(--bad); }
.part { background: #eef1f4; color: var(--dim); }
.ours { color: var(--ours); font-weight: 600; }
.slower { color: var(--bad); font-weight: 600; }
figure { margin: .6rem 0 1.6rem; }
img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--dim); font-size: .87rem; margin-top: .3rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
nav a { color: var(--ours); margin-right: 1rem; text-decoration: none; }
@media print { details { display: block; } }
"""


def write(report: Report, directory: Path) -> list[Path]:
    """`report.html` and the pictures as PNG files; their paths. Raises NothingToDraw, OSError."""
    made = list(plots.pictures(report))
    paths = [directory / "report.html"]
    files.write_bytes(paths[0], page(report, made).encode())
    for picture in made:
        paths.append(directory / f"{picture.name}.png")
        files.write_bytes(paths[-1], picture.png)
    return paths


def page(report: Report, made: list[Picture]) -> str:
    """The page as text."""
    title = f"flashrnn-bench: {report.suite}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="dim">{escape(fact)}</p>' for fact in show.facts(report)),
        '<nav><a href="#goals">Goals</a><a href="#ratios">Ratios</a>'
        '<a href="#roofline">Roofline</a><a href="#cases">Every case</a></nav>',
        _goals(goals.lines(report)),
        '<h2 id="ratios">flashrnn beside the others</h2>',
        *(_figure(picture) for picture in made if picture.name.startswith("bars")),
        '<h2 id="roofline">Against the machine</h2>',
        *(f"<p>{escape(show.roof_words(roof))}.</p>" for roof in report.roofs),
        *(_figure(picture) for picture in made if picture.name.startswith("roofline")),
        _means(report),
        '<h2 id="cases">Every case</h2>',
        f'<p class="dim">{escape(show.LEGEND)}</p>',
        *_cases(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _goals(lines: list[Line]) -> str:
    if not lines:
        return '<h2 id="goals">Goals</h2><p>No goal was measured.</p>'
    rows, before = [], None
    for line in lines:
        first = line.subject != before
        before = line.subject
        state = ("met" if line.met else "missed") if line.whole else "part"
        what = f"{line.what} ({line.where})" if line.where else line.what
        cells = (
            _text(line.subject if first else ""),
            _text(what),
            _number(show.value(line)),
            _number(show.bound(line)),
            _html(f'<span class="chip {state}">{escape(show.verdict(line))}</span>'),
        )
        rows.append(_row(cells, first))
    head = _head("cell", "goal", "#found", "#wanted", "")
    return (
        '<h2 id="goals">Goals</h2><p class="dim">float32, one thread; ratios are the other\'s time '
        "over flashrnn's, means are geometric over the nine shapes, and forward+backward counts "
        "the gradients of the weights and of the input.</p>"
        f"<table>{head}{''.join(rows)}</table>"
    )


def _means(report: Report) -> str:
    rows, before = [], None
    for mean in report.means():
        group = (mean.subject, mean.kind, mean.threads)
        first = group != before
        before = group
        cells = (
            _text(mean.subject if first else ""),
            _text(mean.kind if first else ""),
            _number(f"{mean.threads}" if first else ""),
            _text(mean.peer),
            _ratio(mean.ratio),
            _number(f"{mean.shapes}"),
        )
        rows.append(_row(cells, first))
    head = _head("cell", "call", "#threads", "over", "#geometric mean of the ratio", "#shapes")
    return f"<h2>Geometric means</h2><table>{head}{''.join(rows)}</table>"


def _cases(report: Report) -> list[str]:
    parts = []
    head = _head(
        "shape",
        "implementation",
        "#time",
        "#± of median",
        "#ratio",
        "#GFLOP/s",
        "#roof",
        "#error",
        "tiling",
    )
    groups = dict.fromkeys((r.subject, r.kind, r.threads) for r in report.rows)
    for group in groups:
        rows = [r for r in report.rows if (r.subject, r.kind, r.threads) == group]
        title = f"{group[0]}, {group[1]}, {show.count(group[2], 'thread')}"
        body = "".join(_case(report, row) for row in rows)
        parts.append(
            f"<details><summary>{escape(title)}</summary><table>{head}{body}</table></details>"
        )
    return parts


def _case(report: Report, row: Row) -> str:
    found = []
    for one in (row.ours, *row.peers):
        ours = one is row.ours
        cells = (
            _text(f"{show.shape_words(row.dims)} {row.inputs}" if ours else ""),
            _text(one.label),
            _number(duration(one.timing.median)),
            _number(f"{100 * one.timing.noise / one.timing.median:.1f}%"),
            _number("") if ours else _ratio(row.ratio(one)),
            _number(show.speed(row, one)),
            _number(show.share(report, row, one)),
            _number(f"{one.error.error:.1e}"),
            _text(show.tiling(row) if ours else ""),
        )
        found.append(_row(cells, ours))
    return "".join(found)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h3>{escape(picture.title)}</h3><figure>"
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.text)}</figcaption></figure>"
    )


def _row(cells: tuple[str, ...], first: bool) -> str:
    """first: of a group, which a line sets off."""
    mark = ' class="first"' if first else ""
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _head(*names: str) -> str:
    """A name that begins with # is that of a column of numbers."""
    cells = (
        f'<th class="number">{escape(name[1:])}</th>'
        if name.startswith("#")
        else f"<th>{escape(name)}</th>"
        for name in names
    )
    return f"<tr>{''.join(cells)}</tr>"


def _html(text: str) -> str:
    return f"<td>{text}</td>"


def _text(text: str) -> str:
    return _html(escape(text))


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'


def _ratio(ratio: float) -> str:
    """Told apart by colour, and by the number."""
    word = "ours" if ratio >= 1 else "slower"
    return f'<td class="number"><span class="{word}">{show.ratio(ratio)}</span></td>'
