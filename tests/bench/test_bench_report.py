"""The report: ratios, means, and JSON that says all of it and can be read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.measure import Timing
from autotune.show import console
from bench import show
from bench.errors import UnreadableReport
from bench.report import Kernel, Machine, Measurement, Report, Row, geometric_mean, read, write
from flashrnn.dims import Dims
from flashrnn.tolerance import Comparison


def measurement(label: str, *samples: float) -> Measurement:
    return Measurement(label, Timing(samples), Comparison("h", 3e-7, 2e-6))


def row(kind: str, D: int, ours: float, library: float, loop: float) -> Row:
    return Row(
        Dims(2, 5, 1, D),
        "float32",
        kind,
        (Kernel("forward", True, {"b_per_register": 2}),),
        measurement("flashrnn", 0.9 * ours, ours, 2 * ours),
        (measurement("torch.nn.LSTM", library), measurement("eager loop", loop)),
    )


REPORT = Report(
    "tiny",
    "2020-01-01T00:00:00+00:00",
    Machine("a cpu", "an os", "3.10", "2.6", None),
    2,
    0.5,
    (
        row("forward", 8, ours=1.0, library=2.0, loop=4.0),
        row("forward", 16, ours=2.0, library=1.0, loop=18.0),
        row("training", 8, ours=1.0, library=0.25, loop=5.0),
    ),
)


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)
    assert geometric_mean([3.0]) == pytest.approx(3.0)


def test_a_ratio_is_the_peer_s_median_over_ours() -> None:
    first = REPORT.rows[0]
    assert [first.ratio(peer) for peer in first.peers] == [2.0, 4.0]


def test_means_are_per_kind_and_peer() -> None:
    found = {(mean.kind, mean.peer): mean.ratio for mean in REPORT.means()}
    assert found == {
        ("forward", "torch.nn.LSTM"): pytest.approx(1.0),
        ("forward", "eager loop"): pytest.approx(6.0),
        ("training", "torch.nn.LSTM"): pytest.approx(0.25),
        ("training", "eager loop"): pytest.approx(5.0),
    }


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(REPORT, path)
    assert read(path) == REPORT


def test_the_json_holds_what_follows_from_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(REPORT, path)
    data = json.loads(path.read_text())
    first = data["rows"][0]
    assert first["ours"]["median"] == 1.0
    assert first["ours"]["noise"] == pytest.approx(REPORT.rows[0].ours.timing.noise)
    assert [peer["ratio"] for peer in first["peers"]] == [2.0, 4.0]
    assert len(data["geometric_means"]) == 4


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "suite": "tiny"}'],
    ids=["empty", "a list", "no schema", "a later schema", "half of it"],
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UnreadableReport, match=r"other\.json is no benchmark report"):
        read(path)


@pytest.mark.parametrize(("slowest", "said"), [(1.01, False), (3.0, True)])
def test_noise_is_pointed_out(
    slowest: float, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = row("forward", 8, ours=1.0, library=2.0, loop=4.0)
    calm = replace(calm, ours=measurement("flashrnn", 1.0, 1.0, slowest, slowest))
    show.report(console(), replace(REPORT, rows=(calm,)))
    assert ("Caution: medians are uncertain by up to" in capsys.readouterr().out) == said
