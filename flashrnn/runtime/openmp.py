"""The OpenMP runtime that torch has loaded; a second one in the process would be a defect."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

_NAMES = ("libgomp", "libiomp5", "libomp")


@lru_cache(maxsize=1)
def threading() -> tuple[int, int]:
    """The addresses of that runtime's GOMP_parallel and omp_get_num_threads.

    Zeros where it has none: kernels then run on one thread. All three runtimes offer both on Linux.
    """
    for path in _loaded():
        try:
            library = ctypes.CDLL(path)
            entries = library.GOMP_parallel, library.omp_get_num_threads
        except (OSError, AttributeError):
            continue
        region, size = (ctypes.cast(e, ctypes.c_void_p).value or 0 for e in entries)
        return region, size
    return 0, 0


def _loaded() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(p for p in paths if Path(p).name.startswith(_NAMES))
