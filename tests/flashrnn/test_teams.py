"""One sequence on several threads: they share its units, and nothing else changes."""

import pytest
import torch
from cells_for_tests import ALL
from problems import check, problem, run

from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.runtime import kernels, launch
from flashrnn.tiling import cpu

LIMIT = 4  # threads; more than this machine may have


@pytest.fixture
def teams(monkeypatch, fresh_kernels):
    """Meeting is free and no problem too small for it."""
    monkeypatch.setattr(cpu, "MEETING_CYCLES", -1e9)
    monkeypatch.setattr(launch, "PARALLEL_PRODUCTS", 0)
    cpu.default.cache_clear()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    cpu.default.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("threads", [2, LIMIT])
@pytest.mark.parametrize("cell", [lstm, gru, elman, slstm, *ALL], ids=lambda c: c.name)
def test_a_team_computes_the_same_bits(cell, threads, dtype, teams) -> None:
    T, D = 5, 70  # a last panel that is not full
    arguments = problem(cell, 1, T, 1, D, dtype)
    torch.set_num_threads(1)
    alone = run(cell, arguments, "cpu")
    torch.set_num_threads(threads)
    together = run(cell, arguments, "cpu")
    for direction in (FORWARD, BACKWARD):
        plan = kernels.plan_for(cell, direction, dtype_of(dtype), Dims(1, T, 1, D), threads)
        assert plan.tiling.cores_d > 1
    for name, x in together.items():
        assert torch.equal(x, alone[name]), name


def test_a_team_keeps_to_the_reference(teams) -> None:
    torch.set_num_threads(2)
    check(lstm, problem(lstm, 1, 9, 1, 150, torch.float32))


def test_only_rows_that_are_too_few_are_shared() -> None:
    def shared(B: int, N: int, threads: int) -> int:
        p = cpu.CpuProblem(
            kernels.lower(lstm), FORWARD, dtype_of(torch.float32), Dims(B, 9, N, 256), threads
        )
        return cpu.default(p, kernels.Device.current()).cores_d

    assert shared(1, 1, 2) == 2
    assert shared(2, 1, 2) == 1
    assert shared(1, 2, 2) == 1
    assert shared(1, 2, 4) == 2
    assert shared(1, 1, 1) == 1
