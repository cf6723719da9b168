"""Results are the same bits from run to run and from one thread to two."""

from collections.abc import Callable

import pytest
import torch
from problems import Tensors, every_cell, layer_problem, problem, results, run

from flashrnn import layer
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.runtime.launch import PARALLEL_PRODUCTS, kernel_for
from flashrnn.runtime.openmp import threading
from flashrnn.runtime.threads import limited_threads

CELLS = pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)


def assert_same_bits(call: Callable[[], Tensors], dims: Dims) -> None:
    assert dims.products >= PARALLEL_PRODUCTS, "too small for two threads"
    assert threading() != (0, 0), "torch's OpenMP runtime was not found"
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(call())
    finally:
        torch.set_num_threads(before)
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), f"{name}: one thread and two"
        assert torch.equal(found[1][name], found[2][name]), f"{name}: two runs"


def both_entries(cell, B: int, T: int, N: int, D: int, dtype: torch.dtype) -> None:
    dims = Dims(B, T, N, D)
    p = problem(cell, B, T, N, D, dtype)
    assert_same_bits(lambda: run(cell, p, "cpu"), dims)
    q = layer_problem(cell, B, T, N, D, 6, dtype)
    lengths = torch.randint(0, T + 1, (B,), generator=torch.Generator().manual_seed(0))
    options = {"lengths": lengths, "reverse": True}
    assert_same_bits(lambda: results(lambda a: layer(**a, function=cell, **options), q), dims)


@CELLS
def test_every_cell(cell) -> None:
    both_entries(cell, 67, 127, 2, 8, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@CELLS
def test_several_panels(cell, dtype) -> None:
    both_entries(cell, 13, 37, 2, 33, dtype)
    both_entries(cell, 2, 470, 1, 33, dtype)


def test_a_kernel_that_was_limited_stays_apart() -> None:
    """A direction that runs beside another one may take fewer threads than torch has."""
    arguments = (lstm, "forward", torch.float32, 4, 5, 1, 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with limited_threads(1):
            alone = kernel_for(*arguments)
        both = kernel_for(*arguments)
        with limited_threads(1):
            assert kernel_for(*arguments) is alone
    finally:
        torch.set_num_threads(before)
    assert (alone.threads, both.threads) == (1, 2)
