"""Memory of results on a CPU: large buffers are kept for the next step, small ones made quickly.

The system hands out fresh memory page by page, each cleared on its first touch: a tenth of the
time of a large layer. So what autograd lets go of is kept. Nothing here is shared between
processes.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Callable
from functools import partial

import torch

# Below, the allocator's own free lists serve.
SMALLEST_BYTES = 1 << 20
# What may lie idle.
MOST_BLOCKS, MOST_BYTES = 16, 1 << 30

_idle: list[mmap.mmap] = []

Maker = Callable[[], torch.Tensor]


# torch.empty_strided(shape, strides, dtype=...) on a CPU, up to 8 dimensions, past the dispatcher:
# what the code that Inductor writes calls, in half of the time. It takes no torch.Size.
_allocate: Callable[..., torch.Tensor] = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]


def maker(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: torch.dtype) -> Maker:
    """What gives an uninitialised tensor of the CPU at each call, at most 8 dimensions.

    strides: None for a contiguous one.
    """
    shape = tuple(shape)
    return partial(_allocate, shape, _contiguous(shape) if strides is None else strides, dtype)


def pooled(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: torch.dtype) -> Maker:
    """`maker`, but the memory of large tensors is the pool's: it returns when the storage dies.

    strides: those of a permuted contiguous tensor.
    """
    count = math.prod(shape)
    if count * dtype.itemsize < SMALLEST_BYTES:
        return maker(shape, strides, dtype)
    return partial(
        _strided, shape, _contiguous(shape) if strides is None else strides, dtype, count
    )


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, count = [], 1
    for size in reversed(shape):
        strides.append(count)
        count *= max(1, size)
    return tuple(reversed(strides))


def _strided(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, count: int
) -> torch.Tensor:
    return _block(dtype, count).as_strided(shape, strides)


def _block(dtype: torch.dtype, count: int) -> torch.Tensor:
    block = _take(count * dtype.itemsize)
    view = memoryview(block)  # lives as long as the storage
    weakref.finalize(view, _give_back, block)
    return torch.frombuffer(view, dtype=dtype, count=count)


def clear() -> None:
    """Return idle memory to the system."""
    _idle.clear()


def _take(needed: int) -> mmap.mmap:
    """The smallest idle block that holds so much, unless it would waste half of it."""
    fitting = [b for b in _idle if needed <= len(b) <= 2 * needed]
    for block in sorted(fitting, key=len):
        with contextlib.suppress(ValueError):  # another thread took it meanwhile
            _idle.remove(block)
            return block
    size = -(-needed // SMALLEST_BYTES) * SMALLEST_BYTES
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    _idle.append(block)
    while len(_idle) > MOST_BLOCKS or sum(map(len, _idle)) > MOST_BYTES:
        del _idle[0]
