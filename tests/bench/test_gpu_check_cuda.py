"""The check's part for CUDA kernels, where there is no GPU: in the execution model of csrc/simt."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from cuda_stand_in import StandIn, install, operators_on_the_cpu
from test_gpu_check import H100, FakeStream

from autotune.compiler_report import Report
from autotune.sass import Code, Function
from bench.gpu_check import cuda_kernels, sanitized, sanitizer
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.emit.cuda import BACKWARD, INFERENCE, TRAINING
from flashrnn.errors import DriverError
from flashrnn.passes.lower import lower
from flashrnn.tiling.cuda import CudaProblem


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    return install(monkeypatch)


def problem_of(direction: str) -> CudaProblem:
    return CudaProblem(lower(lstm), direction, BFLOAT16, Dims(3, 2, 1, 16))


@pytest.fixture
def compiled_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is test_cuda_compile.py's subject."""
    report = Report(40, 0, 4096, 128, Function("run", Code(()), ()), 1.0)
    monkeypatch.setattr(cuda_kernels.compiler_report, "report", lambda _: report)
    monkeypatch.setattr(cuda_kernels, "cubin_of", lambda *_: b"")


@pytest.mark.usefixtures("compiled_elsewhere")
def test_each_direction_is_timed(stand_in: type[StandIn]) -> None:
    asked = [problem_of(direction) for direction in (INFERENCE, TRAINING, BACKWARD)]
    make = partial(cuda_kernels.call_of, device="cpu")
    with operators_on_the_cpu():
        found = list(cuda_kernels.rows(asked, H100, FakeStream(), 0.0, make))
    assert [row.name for row in found] == [
        f"lstm {direction}, CUDA, block" for direction in (INFERENCE, TRAINING, BACKWARD)
    ]
    for row in found:
        assert not row.problem
        assert row.seconds == pytest.approx(1e-3) and row.predicted_seconds > 0
        assert row.actual is not None and row.actual["registers"] == 40
        assert row.tiling.startswith("warps ")
    assert {name for name, _ in stand_in.launches} == {
        "lstm-inference", "lstm-training", "lstm-backward"
    }  # fmt: skip


@pytest.mark.usefixtures("compiled_elsewhere")
def test_what_goes_wrong_is_told() -> None:
    def make(problem: CudaProblem) -> cuda_kernels.Call:
        raise DriverError("the CUDA driver says no")

    (row,) = cuda_kernels.rows([problem_of(INFERENCE)], H100, FakeStream(), 0.0, make)
    assert row.problem == "DriverError: the CUDA driver says no"


def test_the_kernels_that_are_looked_at() -> None:
    asked = cuda_kernels.problems()
    assert len(asked) == 24
    assert {p.dims.N * p.dims.D for p in asked} == {768}


def test_what_the_sanitizer_watches(stand_in: type[StandIn]) -> None:
    torch.manual_seed(0)
    sanitized.call(lstm, 16, "cpu")
    assert [name for name, _ in stand_in.launches] == ["lstm-training", "lstm-backward"]


SCRIPT = """#!/bin/sh
test "$1 $2 $3" = "--tool $2 --error-exitcode" || exit 3
test "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 || exit 4
shift 4
"$@" || exit 5
echo "========= ERROR SUMMARY: $WORDS"
exit $STATUS
"""


def test_the_sanitizer_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (sys.executable, "-c", "print('ran')")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitizer.run(program) == []
    command = tmp_path / sanitizer.COMMAND
    command.write_text(SCRIPT)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("WORDS", "0 errors")
    monkeypatch.setenv("STATUS", "0")
    for tool, outcome in zip(("memcheck", "racecheck"), sanitizer.run(program), strict=True):
        assert outcome == sanitizer.Outcome(tool, "========= ERROR SUMMARY: 0 errors")
    monkeypatch.setenv("WORDS", "2 errors")
    monkeypatch.setenv("STATUS", str(sanitizer.FOUND))
    for outcome in sanitizer.run(program):
        assert outcome.told.endswith("2 errors")
        assert outcome.problem.startswith("found something: ran | ")
    (broken, _) = sanitizer.run((sys.executable, "-c", "raise SystemExit(1)"))
    assert broken.problem.startswith("ended with 5")
    assert broken.told == "it gave no summary"
