"""The command line from end to end, on problems of a few microseconds."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.layers.run
from autotune.device import Device
from bench import cli, files, machine, roofline
from bench.layers import ours, overhead
from bench.layers.plan import Plan, subject
from bench.layers.problem import KINDS, Kind, Problem
from bench.layers.results import read
from bench.layers.suite import _suite, cpu_plan
from bench.machine import confined, processors
from bench.peers import PEERS
from bench.shapes import CPU, Shape
from bench.suites import SUITES, Entry, Suite

SHAPES = (Shape(2, 5, 8), Shape(1, 3, 4))
RUN = ["run", "--suite", "tiny", "--seconds", "0.01"]
OUTPUT = Path("results/bench-tiny.json")


def tiny_plan() -> Plan:
    return Plan(
        "tiny", (subject("lstm", 1),), SHAPES, tuple(KINDS.values()), (1,), 3.0, 5,
        ("nn", "loop"), limits=False,
    )  # fmt: skip


TINY = _suite(tiny_plan)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SUITES, "tiny", Entry(f"{__name__}:TINY", "for tests"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.layers.run, "SAMPLE_SECONDS", 1e-4)


def test_run_prints_tables_and_writes_every_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(RUN) == 0
    out = capsys.readouterr().out
    for words in ("B=2 T=5 D=8 float32 x", "B=1 T=3 D=4 float32 x", "torch.nn.LSTM", "eager loop"):
        assert words in out
    for label in KINDS:
        assert out.count(label) >= 3, "progress, the table's title and the means"
    assert "\x1b" not in out and "…" not in out, "a log has no colours and nothing cut off"

    data = json.loads(OUTPUT.read_text())
    assert data["suite"] == "tiny" and data["seconds"] == 0.01 and data["cases"] == 6
    assert data["machine"]["fingerprint"] == Device.current().fingerprint
    assert len(data["rows"]) == 6 and len(data["geometric_means"]) == 6
    for row in data["rows"]:
        directions = ["forward", "backward"][: 1 + (row["kind"] != "forward")]
        assert [k["direction"] for k in row["kernels"]] == directions
        assert all(k["tiling"] and k["tuned"] is False for k in row["kernels"])
        for one in (row["ours"], *row["peers"]):
            assert len(one["timing"]["samples"]) >= 5 and min(one["timing"]["samples"]) > 0
            assert one["error"]["error"] <= one["error"]["bound"]


def test_show_prints_what_run_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RUN, "--kinds", "forward", "--output", "found/it.json"]) == 0
    told = capsys.readouterr().out
    assert not Path("results").exists()
    assert cli.main(["show", "found/it.json"]) == 0
    shown = capsys.readouterr().out
    assert shown in told and "geometric mean" in shown


def test_options_choose_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cells", "slstm:2", "gru", "slstm:2", "--shapes", "2x3x4", "--kinds", "backward"]
    assert cli.main([*RUN, *words, "--peers", "loop", "--threads", "1", "2"]) == 0
    found = read(OUTPUT)
    assert [(r.subject, r.dims.N, r.dims.D, r.threads, r.inputs) for r in found.rows] == [
        ("slstm, 2 heads", 2, 2, 1, "Wx"),
        ("slstm, 2 heads", 2, 2, 2, "Wx"),
        ("gru", 1, 4, 1, "x"),
        ("gru", 1, 4, 2, "x"),
    ]
    assert {p.label for r in found.rows for p in r.peers} == {"eager loop"}
    assert "two threads vs one, worst case" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--suite", "qiuck"], "'qiuck'; known: compile, compile-cuda, cpu"),
        (["--suite", "tiny", "--cells", "lstn"], "no cell is called 'lstn'; known: coupled_lstm"),
        (["--suite", "tiny", "--cells", "slstm:3"], "heads that divide D = 8"),
        (["--suite", "tiny", "--cells", "slstm:x"], "'slstm:x'"),
        (["--suite", "tiny", "--shapes", "8x0x1"], "'8x0x1'; known: BxTxD"),
        (["--suite", "tiny", "--peers", "jaxx"], "no peer is called 'jaxx'"),
    ],
)
def test_an_unknown_word_is_bad_usage_and_lists_the_known(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *words]) == 2
    assert told in capsys.readouterr().err
    assert not OUTPUT.exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run", "--suite"],
        [*RUN, "--threads", "0"],
        [*RUN, "--threads", "many"],
        [*RUN, "--seconds", "nan"],
        [*RUN, "--minutes", "0"],
        [*RUN, "--tune", "-1"],
        [*RUN, "--kinds", "sideways"],
        ["run", "--sweet", "quick"],
        ["show"],
        ["report"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2


@pytest.mark.parametrize("command", ["show", "report"])
@pytest.mark.parametrize("file", ["missing.json", "broken.json"])
def test_what_cannot_be_read_is_said(
    command: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.json").write_text("no report")
    assert cli.main([command, file]) == 1
    assert file in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("results").write_text("in the way")
    assert cli.main(RUN) == 1
    captured = capsys.readouterr()
    assert "results" in captured.err and captured.out == ""


def test_a_peer_asked_for_by_name_must_be_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = type(PEERS["jax"])("jax.lax.scan", "bench.peers.jax_scan", ("no_such_module",))
    monkeypatch.setitem(PEERS, "jax", gone)
    assert cli.main([*RUN, "--peers", "jax"]) == 1
    assert "'jax' needs no_such_module" in capsys.readouterr().err


def test_threads_are_set_for_everyone_and_given_back() -> None:
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    for count in (1, 2):
        with confined(count):
            assert torch.get_num_threads() == count
            assert len(os.sched_getaffinity(0)) == min(count, len(allowed))
    assert torch.get_num_threads() == before and os.sched_getaffinity(0) == allowed


def test_a_wrong_implementation_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ours.contender

    def swapped(problem: Problem, kind: Kind) -> Any:  # gates in another order
        weights = {**problem.weights, "W": problem.weights["W"].roll(1, 0)}
        other = Problem(problem.subject, problem.dims, problem.dtype, problem.inputs, weights,
                        problem.d_h)  # fmt: skip
        return original(other, kind)

    monkeypatch.setattr(ours, "contender", swapped)
    monkeypatch.setattr(bench.layers.run, "interleave", pytest.fail)
    assert cli.main(RUN) == 1
    assert "flashrnn is wrong in lstm B=2 T=5" in capsys.readouterr().err
    assert not OUTPUT.exists()


def test_what_was_measured_before_an_interrupt_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = bench.layers.run.interleave, iter(range(9))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(bench.layers.run, "interleave", interrupted)
    assert cli.main(RUN) == 130
    captured = capsys.readouterr()
    assert "2 of 6 cases were measured" in captured.out and "interrupted" in captured.err
    assert len(read(OUTPUT).rows) == 2
    assert cli.main(["show", str(OUTPUT)]) == 0
    assert "incomplete: 2 of 6 cases" in capsys.readouterr().out


def test_out_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RUN, "--minutes", "1e-9"]) == 0
    assert len(read(OUTPUT).rows) == 1
    assert "incomplete: 1 of 6 cases" in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["lstm", "elman_relu"])
def test_tuned_tilings_are_used_and_said_so(
    cell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell with a registered family, and one without."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench.layers.run, "TOP_K", 1)
    words = ["--tune", "0.2", "--cells", cell, "--shapes", "1x2x3", "--kinds", "backward"]
    assert cli.main([*RUN, *words]) == 0
    out = capsys.readouterr().out
    assert f"B=1 T=2 D=3 1 thread {cell} forward: 1 rows" in out and f"{cell} backward: 1" in out
    for row in read(OUTPUT).rows:
        assert all(kernel.tuned for kernel in row.kernels)


def test_the_cpu_suite() -> None:
    plan = cpu_plan()
    assert plan.shapes == CPU and len(CPU) == 9
    heads = [(s.cell.name, s.heads, s.owns_product) for s in plan.subjects]
    assert heads[:6] == [
        ("lstm", 1, True), ("gru", 1, True), ("elman", 1, True), ("elman_relu", 1, True),
        ("slstm", 1, False), ("slstm", 4, False),
    ]  # fmt: skip
    assert [k.label for k in plan.kinds] == ["forward", "forward+backward, weights and x"]
    assert plan.threads == tuple(dict.fromkeys((1, processors())))


def test_the_limits_of_the_machine_and_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "ATTEMPTS", 2)
    monkeypatch.setattr(roofline, "SECONDS", 1e-4)
    monkeypatch.setattr(roofline, "MEMORY_BYTES", (1 << 22, 1 << 22))
    monkeypatch.setattr(bench.layers.run, "OVERHEAD_SECONDS", 0.01)
    saved: list[Any] = []
    plan = Plan("cpu", (subject("gru", 1),), SHAPES[:1], (KINDS["forward"],), (1,), 0.01, 1,
                ("loop",))  # fmt: skip
    found = bench.layers.run.run(plan, step=lambda *_: None, save=saved.append)
    assert [len(one.rows) for one in saved] == [0, 1] and saved[-1] == found
    (roof,) = found.roofs
    assert roof.threads == 1 and roof.flops > 1e6
    assert list(roof.levels) == ["l1", "l2", "l3", "memory"]
    assert all(level.rate > 1e5 for level in roof.levels.values())
    (one,) = found.overheads
    assert one.cell == "gru" and one.bare.median > 0 and one.seconds > -one.bare.median


def test_bare_kernels_compute_what_the_call_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = overhead._bare

    def off_by_one(problem):
        run, results = original(problem)
        return run, lambda: tuple(x + 1 for x in results())

    monkeypatch.setattr(overhead, "_bare", off_by_one)
    with pytest.raises(overhead.Disagreement, match="bare kernel"):
        overhead.measure(subject("lstm", 1).cell, 0.01)


@pytest.fixture
def other_suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """A suite from elsewhere, without a page."""
    shown: list[Path] = []

    def arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--color")

    made = Suite(
        arguments,
        lambda options, _out, path: files.write(path, {"suite": "other", "c": options.color}),
        lambda _out, path: shown.append(path),
    )
    monkeypatch.setattr(machine, "OTHER", made, raising=False)
    monkeypatch.setitem(SUITES, "other", Entry("bench.machine:OTHER", "for tests"))
    yield shown


def test_a_suite_brings_its_own_options(
    other_suite: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--suite", "other", "--color", "red"]) == 0
    path = Path("results/bench-other.json")
    assert json.loads(path.read_text()) == {"suite": "other", "c": "red"}
    assert cli.main(["show", str(path)]) == 0 and other_suite == [path]
    assert cli.main(["report", str(path)]) == 1
    assert "has no page" in capsys.readouterr().err
