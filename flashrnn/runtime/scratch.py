"""Memory that a call needs and nobody sees afterwards, kept from call to call.

Fresh megabytes cost a page fault every four kilobytes and are cold; a piece of a layer would pay
that again and again. Each thread has its own; a buffer grows to the largest request.
"""

from __future__ import annotations

import math
import threading

import torch

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised CPU tensor, valid until the next request of that name in this thread."""
    buffers: dict[tuple[str, torch.dtype], torch.Tensor] = _kept.__dict__.setdefault("buffers", {})
    count = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < count:
        buffer = buffers[name, dtype] = torch.empty(count, dtype=dtype)
    return buffer[:count].view(shape)
