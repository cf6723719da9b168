"""The modules suite on a tiny stack: verified, timed, written, shown, held to its goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import cli, modules_suite
from bench.errors import Disagreement
from bench.shapes import MODULES, Stack

RUN = ["run", "--suite", "modules", "--seconds", "0.01"]
FILE = Path("results/bench-modules.json")
KINDS = (modules_suite.FORWARD, modules_suite.TRAINING)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modules_suite, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr("bench.shapes.MODULES", Stack(2, 5, 3, 4, 2, True))
    monkeypatch.setattr("bench.shapes.SMALLEST_MODULE", Stack(1, 1, 3, 4, 1, False))


def test_the_stack_is_the_one_that_the_goals_are_about() -> None:
    assert str(MODULES) == "B=8 T=256, 128→256, 2 layers, bidirectional"


def test_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(RUN) == 0
    told = capsys.readouterr().out
    assert cli.main(["show", str(FILE)]) == 0
    shown = capsys.readouterr().out
    assert shown in told and "B=2 T=5, 3→4, 2 layers, bidirectional, threads: 1" in shown
    assert "B=1 T=1, 3→4, 1 layer, one direction, threads: 1" in shown
    data = json.loads(FILE.read_text())
    assert [(r["module"], r["kind"], r["goal"]) for r in data["rows"]] == [
        ("LSTM", modules_suite.FORWARD, None),
        ("LSTM", modules_suite.TRAINING, 1.3),
        ("GRU", modules_suite.FORWARD, None),
        ("GRU", modules_suite.TRAINING, 2.0),
        ("RNN", modules_suite.FORWARD, None),
        ("RNN", modules_suite.TRAINING, None),
        *((m, k, None) for m in modules_suite.MODULES for k in KINDS),  # the smallest call
    ]
    for row in data["rows"]:
        assert row["error"]["error"] <= row["error"]["bound"]
        assert all(len(s) >= 5 and min(s) > 0 for s in row["samples"].values())


def test_goals_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RUN, "--modules", "LSTM"]) == 0
    data = json.loads(FILE.read_text())
    for ours, verdict in ((1.0, "not met"), (0.5, "met")):
        data["rows"][1]["samples"] = {"flashrnn.nn": [ours] * 5, "torch.nn": [1.2] * 5}
        FILE.write_text(json.dumps(data))
        capsys.readouterr()
        assert cli.main(["show", str(FILE)]) == 0
        assert f"≥ 1.3: {verdict}" in capsys.readouterr().out


def test_what_computes_something_else_is_not_timed() -> None:
    problem = modules_suite.Problem("GRU", Stack(2, 5, 3, 4, 1, False))
    assert problem.verify().ok
    problem.ours = torch.nn.GRU(3, 4)
    with pytest.raises(Disagreement, match=r"flashrnn\.nn is wrong in GRU"):
        problem.verify()
