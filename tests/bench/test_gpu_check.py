"""The check of a GPU where there is none: what it says; its parts in the interpreter."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
import torch

from autotune.compiler_report import Report
from autotune.device import Device
from autotune.errors import NotDeterministic
from autotune.gpu import KIB
from autotune.sass import Code, Function
from bench.gpu_check import __main__ as command
from bench.gpu_check import ahead, correctness, cuda_kernels, kernels, layers, sanitizer
from bench.gpu_check.page import faults, page, rank_correlation
from bench.layers.plan import subject
from bench.shapes import Shape
from flashrnn.cells import elman
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.triton import BACKWARD, INFERENCE
from flashrnn.passes.lower import lower
from flashrnn.runtime import triton_build
from flashrnn.tiling.triton import TritonProblem
from flashrnn.triton_tunable import runner_of

H100 = Device.named("h100-sxm")


class FakeStream:
    """A clock that only knows how often it was asked."""

    def __init__(self) -> None:
        self.marks = 0

    def capturing(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def mark(self) -> float:
        self.marks += 1
        return self.marks * 1e-3

    def seconds(self, start: float, end: float) -> float:
        return end - start


def test_without_a_gpu_it_says_so_and_all_is_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert told.startswith("gpu-check: nothing was checked: there is no GPU to use: torch ")
    assert not list(tmp_path.iterdir())


def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--seconds", "0"])
    assert stop.value.code == 2
    assert "not a positive number" in capsys.readouterr().err


def problem_of(direction: str) -> TritonProblem:
    return TritonProblem(lower(elman), direction, FLOAT32, Dims(3, 4, 2, 20))


def interpreted(kernel, config):
    return runner_of(kernel.problem_, kernel.tiling(config), "cpu")


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def compiled_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton cannot compile while it interprets."""
    report = Report(40, 0, 4 * KIB, 128, Function("run", Code(()), ()), 1.0)
    monkeypatch.setattr(kernels.compiler_report, "report", lambda _: report)
    monkeypatch.setattr(kernels.TritonKernel, "compile", lambda *_: None)


@pytest.mark.usefixtures("interpreter")
def test_a_kernel_is_compiled_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_elsewhere(monkeypatch)
    asked = [problem_of(INFERENCE), problem_of(BACKWARD)]
    found = list(kernels.rows(asked, H100, FakeStream(), 0.0, interpreted))
    assert [row.name for row in found] == ["elman inference, fused", "elman backward, fused"]
    for row in found:
        assert not row.problem
        assert row.actual is not None and row.actual["registers"] == 40
        assert (row.seconds, row.blocks_per_sm) == (pytest.approx(1e-3), 12)
        assert row.error is not None and row.error < 1e-5
        assert row.predicted_seconds > 0


@pytest.mark.usefixtures("interpreter")
def test_what_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_elsewhere(monkeypatch)

    def drifting(kernel, config):
        runner, calls = interpreted(kernel, config), count()
        monkeypatch.setattr(runner, "results", lambda: bytes([next(calls)]))
        return runner

    def broken(kernel, config):
        raise RuntimeError("CUDA error: out of memory")

    def wrong(kernel, config):
        runner = interpreted(kernel, config)
        check = runner.check
        monkeypatch.setattr(runner, "check", lambda: replace(check(), error=1.0))
        return runner

    asked = [problem_of(INFERENCE)]
    told = []
    for load in (drifting, broken, wrong):
        (row,) = kernels.rows(asked, H100, FakeStream(), 0.0, load)
        told.append(row.problem)
    assert told[0].startswith(NotDeterministic.__name__)
    assert told[1] == "RuntimeError: CUDA error: out of memory"
    assert " is 1 > " in told[2]


def leave_a_file(index: int, folder: str) -> None:
    """As a compiler, which fails for the second kernel."""
    if index == 1:
        raise RuntimeError
    (Path(folder) / str(index)).touch()


def test_kernels_are_compiled_ahead_and_those_that_fail_left_to_their_rows(tmp_path: Path) -> None:
    ahead.compile_all(str(tmp_path), [(leave_a_file, i) for i in range(4)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3"]
    assert len(ahead.jobs()) == len(kernels.problems()) + len(cuda_kernels.problems())


def test_layers_are_verified_and_timed() -> None:
    """On a CPU: the same contenders, by the kernels that this machine has."""
    asked = [layers.Case(subject("lstm", 1), Shape(2, 5, 8), FLOAT32)]
    found = list(layers.rows(asked, FakeStream(), 0.0, device="cpu"))
    assert [row.problem for row in found] == [""] * 2
    assert list(found[0].seconds) == ["flashrnn", "torch.nn.LSTM", "eager loop"]
    assert {row.kind for row in found} == {kind.label for kind in layers.KINDS}


def test_a_layer_that_disagrees_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PEERS", {"nn": lambda *_: 1 / 0})
    case = layers.Case(subject("lstm", 1), Shape(1, 2, 4), FLOAT32)
    for row in layers.rows([case], FakeStream(), 0.0, device="cpu"):
        assert row.problem.startswith("PeerFailed: nn failed")
        assert not row.seconds


TESTS = """
import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n", range(3))
def test_n(n):
    if n == 1:
        pytest.skip("no such GPU")
    assert n != 2


def test_error(nothing):
    pass
"""


def test_the_correctness_matrix_is_counted(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: on a GPU\n")
    (tests / "test_some.py").write_text(TESTS)
    outcome = correctness.run(tests)
    assert (outcome.passed, outcome.skipped) == (1, 1)
    assert len(outcome.failed) == 2
    assert outcome.failed[0].endswith("test_some::test_n[2]")
    assert not outcome.ok
    (tests / "test_some.py").write_text("")
    assert correctness.run(tests).problem == "no test was found"
    assert "checkout" in correctness.run(tmp_path / "nowhere").problem


BREAKING = """
import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n", range(4))
def test_n(n):
    assert not torch.cuda.broken
    torch.cuda.broken = n == 1
"""
TORCH = """
class cuda:
    broken = False

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def synchronize():
        if cuda.broken:
            raise RuntimeError("an illegal instruction was encountered")
"""


def test_a_test_that_breaks_cuda_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    plugin = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")
    (tests / "conftest.py").write_text(plugin)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: on a GPU\n")
    (tests / "test_some.py").write_text(BREAKING)
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(correctness, "MOST_PROCESSES", 1)
    outcome = correctness.run(tests)
    assert outcome.passed == 3, outcome
    assert len(outcome.failed) == 1
    monkeypatch.setattr(correctness, "_processes", list)
    alone = correctness.run(tests)
    assert (alone.passed, alone.problem) == (2, "pytest ended early, with status 3")


def test_the_file_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whole check, of parts that are given."""
    prediction = kernels.Prediction(100, 2048, 128)
    row = kernels.Row(
        "lstm training, fused", Dims(64, 128, 12, 64), "bfloat16", "16 rows", "model-chosen",
        prediction, 1e-3, {"registers": 80, "shared_bytes": 4096, "spill_store_bytes": 4,
        "spill_load_bytes": 8}, 3, 1e-3, 2e-3, 1e-3,
    )  # fmt: skip
    rows = [row, replace(row, actual=None, seconds=None, noise=None, problem="it hangs")]
    seconds = {"flashrnn": 1e-3, "torch.nn.LSTM": 2e-3, "eager loop": 0.05}
    layer = layers.Row(
        "lstm", "16x256x64", "bfloat16", "forward", "", seconds, dict.fromkeys(seconds, 0.0)
    )
    monkeypatch.setattr(command.kernels, "rows", lambda *_: iter(rows))
    monkeypatch.setattr(command.cuda_kernels, "rows", lambda *_: iter([row]))
    monkeypatch.setattr(command.layers, "rows", lambda *_: iter([layer]))
    outcomes = [
        sanitizer.Outcome("memcheck", "0 errors"),
        sanitizer.Outcome("racecheck", "", "a race"),
    ]
    monkeypatch.setattr(command.sanitizer, "run", lambda: outcomes)
    monkeypatch.setattr(command.correctness, "run", lambda: correctness.Outcome(7, 1, ("test_a",)))
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    monkeypatch.setattr(Device, "current", lambda kind="cpu": H100)
    monkeypatch.setattr(command, "CudaStream", lambda _: FakeStream())
    ahead_of_all = []
    monkeypatch.setattr(command.ahead, "compile_all", lambda *given: ahead_of_all.append(given))
    output = tmp_path / "results" / "check.json"
    assert command.main(["--output", str(output)]) == 1
    assert ahead_of_all == [(H100, command.ahead.jobs())]
    found = json.loads(output.read_text())
    assert found["gpu"]["key"] == "h100-sxm"
    assert found["kernels"][0] == json.loads(json.dumps(asdict(row)))
    assert faults(found) == 4
    assert found["cuda_kernels"] == found["kernels"][:1]
    text = output.with_suffix(".md").read_text()
    assert text == page(found)
    assert "7 passed, 1 failed, 1 skipped" in text
    assert "Registers: median error 25.0%, worst 25.0%" in text
    assert "predicted too low for 1 kernels" in text
    assert "| 100 > 80 | 2,048 > 4,096 | 12 | 3 |" in text
    assert "- lstm training, fused, bfloat16: it hangs" in text
    assert "(noisy)" in text
    assert "- memcheck: 0 errors\n- racecheck: a race\n" in text
    assert "It is not on PATH." in page({**found, "sanitizer": []})
    assert "| 2.00 |" in text and "| 50.00 |" in text


def test_ranks() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 90.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 2.0]) < 0
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_the_target_of_make() -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    assert "python -m bench.gpu_check" in makefile.read_text(encoding="utf-8")
    assert command.__name__ in sys.modules
