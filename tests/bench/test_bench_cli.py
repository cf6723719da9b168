"""The command line from end to end, on suites of a few microseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bench.run
from autotune.device import Device
from bench import cli, layers, report
from bench.cases import KINDS
from bench.layers import Layer, Weights
from bench.shapes import SUITES, Suite
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32

TINY = Suite(FLOAT32, (Dims(B=2, T=5, N=1, D=8), Dims(B=1, T=3, N=1, D=5)))
RUN = ["run", "--suite", "tiny", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SUITES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.run, "SAMPLE_SECONDS", 1e-4)


def test_run_prints_a_table_and_writes_every_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(RUN) == 0
    out = capsys.readouterr().out
    for words in ("B=2 T=5 D=8 float32", "B=1 T=3 D=5 float32", "torch.nn.LSTM", "eager loop"):
        assert words in out
    for kind in KINDS:
        assert out.count(kind.label) >= 3, "progress, the table's title and the means"
    assert "\x1b" not in out and "…" not in out, "a log has no colours and nothing cut off"

    data = json.loads((tmp_path / "results" / "bench-tiny.json").read_text())
    assert data["suite"] == "tiny" and data["threads"] == 1 and data["seconds"] == 0.01
    assert data["machine"]["fingerprint"] == Device.current().fingerprint
    assert data["machine"]["torch"] == torch.__version__
    assert len(data["rows"]) == 6 and len(data["geometric_means"]) == 6
    for row in data["rows"]:
        trains = row["kind"] != "forward"
        assert [k["direction"] for k in row["kernels"]] == ["forward", "backward"][: 1 + trains]
        assert all(k["tiling"] and k["tuned"] is False for k in row["kernels"])
        for one in (row["ours"], *row["peers"]):
            samples = one["timing"]["samples"]
            assert len(samples) >= bench.run.MIN_ROUNDS and min(samples) > 0
            assert one["error"]["error"] <= one["error"]["bound"]


def test_show_prints_what_run_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RUN, "--output", "found/it.json"]) == 0
    told = capsys.readouterr().out
    assert not Path("results").exists()
    assert cli.main(["show", "found/it.json"]) == 0
    shown = capsys.readouterr().out
    assert shown in told and "geometric mean" in shown


def test_an_unknown_suite_is_bad_usage_and_lists_the_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "--suite", "qiuck"]) == 2
    error = capsys.readouterr().err
    assert "'qiuck'" in error and "known: quick, tiny" in error
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run", "--threads", "0"],
        ["run", "--seconds", "nan"],
        ["run", "--tune", "-1"],
        ["run", "--sweet", "quick"],
        ["show"],
    ],
)
def test_bad_usage_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2


@pytest.mark.parametrize("file", ["missing.json", "broken.json"])
def test_what_cannot_be_shown_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.json").write_text("no report")
    assert cli.main(["show", file]) == 1
    assert file in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("results").write_text("in the way")
    assert cli.main(RUN) == 1
    captured = capsys.readouterr()
    assert "results" in captured.err and captured.out == ""


def test_threads_are_set_for_everyone_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    during = []
    original = bench.run.interleave

    def spy(*functions: object, **options: object) -> object:
        during.append(torch.get_num_threads())
        return original(*functions, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.run, "interleave", spy)
    monkeypatch.setitem(SUITES, "tiny", Suite(FLOAT32, TINY.shapes[:1]))
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    assert cli.main([*RUN, "--threads", str(other)]) == 0
    assert set(during) == {other} and torch.get_num_threads() == before
    assert report.read(Path("results/bench-tiny.json")).threads == other


def test_a_wrong_implementation_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = layers.fused

    def swapped(weights: Weights) -> Layer:  # gates in another order
        return original(Weights(weights.W.roll(8, 0), weights.R, weights.b))

    monkeypatch.setattr(layers, "fused", swapped)
    monkeypatch.setattr(bench.run, "interleave", pytest.fail)
    assert cli.main(RUN) == 1
    assert "flashrnn is wrong in B=2 T=5" in capsys.readouterr().err
    assert not Path("results/bench-tiny.json").exists()


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.run, "interleave", interrupt)
    assert cli.main(RUN) == 130
    assert "interrupted" in capsys.readouterr().err


def test_tuned_tilings_are_used_and_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench.run, "TOP_K", 1)
    monkeypatch.setitem(SUITES, "tiny", Suite(FLOAT32, (Dims(B=1, T=2, N=1, D=3),)))
    assert cli.main([*RUN, "--tune", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "B=1 T=2 D=3 lstm forward: 1 rows" in out and "lstm backward: 1 rows" in out
    for row in report.read(Path("results/bench-tiny.json")).rows:
        assert all(kernel.tuned for kernel in row.kernels)
