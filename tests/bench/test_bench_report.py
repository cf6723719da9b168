"""The results: ratios, means, goals, JSON that can be read again, and a page that needs nothing."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autotune.measure import Timing
from autotune.show import console
from bench import cli
from bench.errors import NothingToDraw, UnreadableReport
from bench.layers import goals, page, show
from bench.layers.overhead import Overhead
from bench.layers.results import (
    Kernel,
    Measurement,
    Report,
    Row,
    Work,
    geometric_mean,
    read,
    write,
)
from bench.machine import Machine
from bench.peers import Missing
from bench.roofline import Level, Roof
from bench.shapes import CPU, Shape
from flashrnn.dims import Dims
from flashrnn.tolerance import Comparison

BOTH = "forward+backward, weights and x"


def measurement(label: str, *samples: float) -> Measurement:
    return Measurement(label, Timing(samples), Comparison("h", 3e-7, 2e-6))


def row(
    kind: str, dims: Dims, ours: float, *, threads: int = 1, cell: str = "lstm", **peers: float
) -> Row:
    names = {"nn": "torch.nn.LSTM", "loop": "eager loop", "jax": "jax.lax.scan"}
    return Row(
        cell,
        cell,
        "x",
        dims,
        "float32",
        kind,
        threads,
        Work(flops=10**9, bytes=10**8, weights=65536),
        (Kernel("forward", True, {"b_per_register": 2}),),
        measurement("flashrnn", 0.9 * ours, ours, 2 * ours),
        tuple(measurement(names[name], time) for name, time in peers.items()),
    )


SMALL, LARGE = Dims(2, 5, 1, 8), Dims(2, 5, 1, 16)
LEVELS = {"l1": Level(2**15, 2e11), "l2": Level(2**20, 1e11), "l3": Level(2**24, 5e10),
          "memory": Level(0, 1e10)}  # fmt: skip
REPORT = Report(
    "cpu",
    "2020-01-01T00:00:00+00:00",
    Machine("a <cpu>", "an os", "3.10", "2.6", None),
    0.5,
    4,
    {"jax.lax.scan": "compiled beforehand"},
    (Missing("openvino", "No module named 'openvino'"),),
    (Roof(1, 1e11, LEVELS),),
    (Overhead("lstm", Timing((80e-6, 90e-6)), Timing((20e-6,))),),
    (
        row("forward", SMALL, 1.0, nn=2.0, loop=4.0),
        row("forward", LARGE, 2.0, nn=1.0, loop=18.0),
        row(BOTH, SMALL, 1.0, nn=0.25, loop=5.0),
    ),
)


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)


def test_means_are_per_kind_and_peer() -> None:
    found = {(mean.kind, mean.peer): (mean.ratio, mean.shapes) for mean in REPORT.means()}
    assert found == {
        ("forward", "torch.nn.LSTM"): (pytest.approx(1.0), 2),
        ("forward", "eager loop"): (pytest.approx(6.0), 2),
        (BOTH, "torch.nn.LSTM"): (pytest.approx(0.25), 1),
        (BOTH, "eager loop"): (pytest.approx(5.0), 1),
    }


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(REPORT, path)
    assert read(path) == REPORT
    first = json.loads(path.read_text())["rows"][0]
    assert first["ours"]["median"] == 1.0
    assert [peer["ratio"] for peer in first["peers"]] == [2.0, 4.0]
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"], "nothing is left over"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"suite": "cpu", "schema": 1}', '{"suite": "cpu", "schema": 2}'],
    ids=["empty", "a list", "no suite", "an earlier schema", "half of it"],
)
def test_another_file_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UnreadableReport, match=r"other\.json is no benchmark report"):
        read(path)
    assert cli.main(["report", str(path)]) == 1
    assert "other.json is no benchmark report" in capsys.readouterr().err


def nine(ratio: float, worst: float, cell: str = "lstm") -> tuple[Row, ...]:
    """A whole set of shapes with these ratios to torch.nn and the loop, the last one differing."""
    found = []
    for shape in CPU:
        r = worst if shape is CPU[-1] else ratio
        for kind in ("forward", BOTH):
            found.append(row(kind, shape.dims(1), 1.0, cell=cell, nn=r, loop=2 * r, jax=3 * r))
            found.append(row(kind, shape.dims(1), 0.5, threads=2, cell=cell, nn=9 * r))
    return tuple(found)


def lines(report: Report) -> dict[str, goals.Line]:
    return {f"{line.subject}: {line.what}": line for line in goals.lines(report)}


def test_goals_of_a_whole_run() -> None:
    found = lines(replace(REPORT, rows=nine(2.0, 0.5)))
    mean = found["lstm: forward+backward vs torch.nn, geometric mean"]
    assert mean.value == pytest.approx((2.0**8 * 0.5) ** (1 / 9)) and mean.met and mean.whole
    worst = found["lstm: forward+backward vs torch.nn, worst shape"]
    assert worst.value == pytest.approx(0.5) and not worst.met and worst.where == str(CPU[-1])
    best = found["lstm: forward vs the best peer of all, geometric mean"]
    assert best.value == pytest.approx(mean.value), "torch.nn is the fastest here"
    assert found["lstm: two threads vs one, worst case"].value == pytest.approx(2.0)
    assert found["lstm: two threads vs one, worst case"].count == 2 * 6, "B = 1 does not count"
    call = found["lstm: call over bare kernels, forward+backward"]
    assert call.value == pytest.approx(65.0) and call.met
    assert not replace(call, value=91.0).met


def test_the_goals_of_slstm_are_others() -> None:
    found = lines(replace(REPORT, rows=nine(2.0, 0.5, cell="slstm")))
    assert found["slstm: forward+backward vs eager loop at 1x256x64"].goal == 25.0
    assert found["slstm: forward vs jax.lax.scan, geometric mean"].value > 3


def test_goals_rest_on_the_nine_shapes_only() -> None:
    assert lines(REPORT).keys() == {"lstm: call over bare kernels, forward+backward"}
    part = lines(replace(REPORT, rows=nine(2.0, 2.0)[:4]))
    mean = part["lstm: forward+backward vs torch.nn, geometric mean"]
    assert mean.met and not mean.whole and show.verdict(mean) == "met (1 of 9 measured)"


@pytest.mark.parametrize(("slowest", "said"), [(1.01, False), (3.0, True)])
def test_noise_is_pointed_out(
    slowest: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = replace(REPORT.rows[0], ours=measurement("flashrnn", 1.0, 1.0, slowest, slowest))
    show.report(console(), replace(REPORT, rows=(calm,)))
    out = capsys.readouterr().out
    assert ("Caution: medians are uncertain by up to" in out) == said
    assert "incomplete: 1 of 4 cases" in out and "openvino takes no part" in out


def test_a_roof() -> None:
    roof = REPORT.roofs[0]
    assert [roof.home(n) for n in (2**15, 2**15 + 1, 2**24, 2**25)] == ["l1", "l2", "l3", "memory"]
    assert roof.bound(0.1, "l2") == pytest.approx(1e10) and roof.bound(50, "l2") == 1e11


class _Links(HTMLParser):
    """Everything that a browser would fetch or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        self.found += [v or "" for n, v in attrs if n in ("src", "href", "srcset", "data")]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write(replace(REPORT, rows=(*REPORT.rows, *nine(2.0, 0.5))), path)
    assert cli.main(["report", str(path)]) == 0
    made = {p.name: p for p in (tmp_path / "found").iterdir()}
    assert made.keys() == {"report.html", "bars-lstm-1.png", "bars-lstm-2.png", "roofline-1.png"}
    text = made["report.html"].read_text(encoding="utf-8")
    links = _Links()
    links.feed(text)
    inside = [link for link in links.found if link.startswith("data:image/png;base64,")]
    assert len(inside) == 3
    assert all(link.startswith("#") for link in links.found if link not in inside)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "a &lt;cpu&gt;" in text and "a <cpu>" not in text
    for link in inside:
        png = base64.b64decode(link.partition(",")[2])
        assert png.startswith(b"\x89PNG") and png in [p.read_bytes() for p in made.values()]


def test_a_report_without_cases_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(NothingToDraw, match="no cases"):
        page.write(replace(REPORT, rows=()), tmp_path)


def test_shapes_as_text() -> None:
    assert Shape.parse("8x256x64") == Shape(8, 256, 64)
    assert str(Shape(8, 256, 64)) == "8x256x64" and Shape(8, 256, 64).dims(4) == Dims(8, 256, 4, 16)
