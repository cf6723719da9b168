"""The quick suite through pytest-benchmark: `pytest bench/`, one group per case.

The command line times the contenders of a case in turns; here each one is timed on its own, so
compare with `flashrnn-bench run` and keep this for pytest-benchmark's histories and statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import KINDS, Case, Kind, case_of, verify
from bench.shapes import suite_of
from flashrnn.dims import Dims

QUICK = suite_of("quick")
THREADS = 1


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    dims, kind = request.param
    made = case_of(dims, QUICK.dtype, kind)
    verify(made)
    return made


@pytest.mark.parametrize("contender", [0, 1, 2], ids=["flashrnn", "nn.LSTM", "loop"])
@pytest.mark.parametrize(
    "case",
    [(dims, kind) for dims in QUICK.shapes for kind in KINDS],
    ids=lambda param: _label(*param),
    indirect=True,
)
def test_quick(benchmark: BenchmarkFixture, case: Case, contender: int) -> None:
    benchmark.group = case.label
    benchmark(case.contenders[contender].call)


def _label(dims: Dims, kind: Kind) -> str:
    return f"{dims} {kind.label}"
