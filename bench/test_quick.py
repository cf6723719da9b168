"""The quick suite through pytest-benchmark: `pytest bench/`, one group per case.

The command line times the contenders of a case in turns; here each one is timed on its own, so
compare with `flashrnn-bench run` and keep this for pytest-benchmark's histories and statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import peers
from bench.layers.cases import Case, Judges, case_of, verify
from bench.layers.problem import problem_of
from bench.layers.suite import quick_plan
from bench.machine import confined

PLAN = quick_plan()
(SUBJECT,), (THREADS,) = PLAN.subjects, PLAN.threads


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with confined(THREADS):
        yield


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    shape, kind = request.param
    problem = problem_of(SUBJECT, shape.dims(SUBJECT.heads), PLAN.dtype)
    made = case_of(problem, kind, THREADS, peers.load(PLAN.peers)[0])
    verify(made, Judges.of(problem))
    return made


@pytest.mark.parametrize("contender", [0, 1, 2], ids=["flashrnn", "nn.LSTM", "loop"])
@pytest.mark.parametrize(
    "case",
    [(shape, kind) for shape in PLAN.shapes for kind in PLAN.kinds],
    ids=lambda param: f"{param[0]} {param[1].label}",
    indirect=True,
)
def test_quick(benchmark: BenchmarkFixture, case: Case, contender: int) -> None:
    benchmark.group = case.label
    benchmark(case.contenders[contender].call)
