"""Large buffers of the training pass, kept for the next step when autograd lets go of them.

The system hands out fresh memory page by page, each cleared on its first touch: a tenth of the
time of a large layer. Nothing here is shared between processes.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref

import torch

# Below, the allocator's own free lists serve.
SMALLEST_BYTES = 1 << 20
# What may lie idle.
MOST_BLOCKS, MOST_BYTES = 16, 1 << 30

_idle: list[mmap.mmap] = []


def empty(
    like: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> torch.Tensor:
    """An uninitialised tensor of like's dtype, on the CPU as that is.

    Its memory returns to the pool when its storage dies. strides: those of a permuted contiguous
    tensor; without them it is contiguous.
    """
    count = math.prod(shape)
    needed = count * like.itemsize
    if needed < SMALLEST_BYTES:
        return like.new_empty(shape) if strides is None else like.new_empty_strided(shape, strides)
    block = _take(needed)
    view = memoryview(block)  # lives as long as the storage
    weakref.finalize(view, _give_back, block)
    flat = torch.frombuffer(view, dtype=like.dtype, count=count)
    return flat.view(shape) if strides is None else flat.as_strided(shape, strides)


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
