"""How many threads a kernel may take: those of torch, shared out where kernels run at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Local(threading.local):
    limit: int | None = None


_local = _Local()


def thread_count() -> int:
    """The threads that a call from this thread may take."""
    limit = _local.limit
    return torch.get_num_threads() if limit is None else limit


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Inside, calls from this thread take so many."""
    before = _local.limit
    _local.limit = threads
    try:
        yield
    finally:
        _local.limit = before
