"""The OpenMP runtime that torch has loaded; a second one in the process would be a defect."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

_NAMES = ("libgomp", "libiomp5", "libomp")


@lru_cache(maxsize=1)
def parallel_region() -> int:
    """The address of that runtime's GOMP_parallel; 0 where it has none, and kernels run serially.

    All three runtimes offer the entry point on Linux.
    """
    for path in _loaded():
        try:
            library = ctypes.CDLL(path)
            entry = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


def _loaded() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(p for p in paths if Path(p).name.startswith(_NAMES))
