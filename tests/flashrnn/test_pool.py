"""Kept buffers: reused when the storage dies, never while anything still looks at it."""

import pytest
import torch

from flashrnn import layer
from flashrnn.runtime import pool

LIKE = torch.empty(0)


def empty(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return pool.pooled(shape, None, like.dtype)()


@pytest.fixture(autouse=True)
def _emptied():
    pool.clear()
    yield
    pool.clear()


def test_memory_returns_when_the_last_view_dies() -> None:
    x = empty(LIKE, (512, 1024))
    address, view = x.data_ptr(), x[3:]
    del x
    other = empty(LIKE, (512, 1024))
    assert other.data_ptr() != address
    del view
    assert empty(LIKE, (500, 1024)).data_ptr() == address
    assert empty(LIKE, (10, 1024)).data_ptr() != address, "small ones are torch's"


@pytest.mark.parametrize("sizes", [(4, 5), (512, 1024)])
def test_strides_are_those_that_were_asked_for(sizes: tuple[int, int]) -> None:
    rows, columns = sizes
    like = torch.empty(0, dtype=torch.float64)
    x = pool.pooled((columns, rows), (1, columns), like.dtype)()
    assert x.dtype == torch.float64
    assert x.shape == (columns, rows)
    assert x.t().is_contiguous()
    assert empty(like, sizes).is_contiguous()


def test_a_much_larger_block_is_left_alone() -> None:
    address = empty(LIKE, (4096, 1024)).data_ptr()
    assert empty(LIKE, (512, 1024)).data_ptr() != address


def test_idle_memory_is_bounded() -> None:
    held = [empty(LIKE, (512, 1024)) for _ in range(2 * pool.MOST_BLOCKS)]
    held.clear()
    assert len(pool._idle) == pool.MOST_BLOCKS
    monkey = pytest.MonkeyPatch()
    monkey.setattr(pool, "MOST_BYTES", 3 << 21)
    empty(LIKE, (512, 1024))
    monkey.undo()
    assert sum(map(len, pool._idle)) <= 3 << 21


def test_results_of_one_call_survive_the_next() -> None:
    """Outputs and saved values of two live graphs share nothing."""
    B, T, D = 8, 256, 64
    torch.manual_seed(0)
    W, R = (torch.randn(4, 1, D, D, requires_grad=True) for _ in range(2))
    x = torch.randn(2, B, T, D)
    first, _ = layer(x[0], W, R * 0.1)
    kept = first.detach().clone()
    alone = torch.autograd.grad(first.sum(), W, retain_graph=True)[0]
    second, _ = layer(x[1], W, R * 0.1)
    second.sum().backward()
    assert torch.equal(first, kept)
    assert torch.equal(torch.autograd.grad(first.sum(), W)[0], alone)
