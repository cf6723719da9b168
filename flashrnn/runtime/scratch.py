"""Memory that a call needs and nobody sees afterwards, kept from call to call.

Fresh megabytes cost a page fault every four kilobytes and are cold; a piece of a layer would pay
that again and again. Each thread has its own; a buffer grows to the largest request.
"""

from __future__ import annotations

import threading

import torch

from flashrnn.dtypes import Dtype

_kept = threading.local()


def scratch(name: str, count: int, dtype: Dtype) -> int:
    """The address of `count` uninitialised numbers, valid until that name's next request.

    In this thread; aligned as tensors are.
    """
    kept: dict[str, tuple[int, int, torch.Tensor]] = _kept.__dict__
    key = f"{name} {dtype.name}"
    known = kept.get(key)
    if known is None or known[0] < count:
        buffer = torch.empty(count, dtype=dtype.torch)
        known = kept[key] = count, buffer.data_ptr(), buffer
    return known[1]
