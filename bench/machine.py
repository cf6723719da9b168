"""The machine a run is on, and how many of its processors it uses."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from autotune.device import Device


@dataclass(frozen=True)
class Machine:
    """Where it ran. load: processes that wanted to run just before, None if nobody knows."""

    fingerprint: str
    system: str
    python: str
    torch: str
    load: float | None

    @staticmethod
    def current() -> Machine:
        return Machine(
            fingerprint=Device.current().fingerprint,
            system=platform.platform(),
            python=platform.python_version(),
            torch=torch.__version__,
            load=_load(),
        )


def processors() -> int:
    """How many this process may use."""
    return len(_allowed()) or os.cpu_count() or 1


@contextmanager
def confined(threads: int) -> Iterator[None]:
    """So many threads for everyone, on so many processors.

    torch's number is also the one that our kernels use. Where the system lets us, every thread of
    the process may run on the first `threads` processors only (as `taskset` does it), so that
    nobody's helper threads count for more; threads that start inside inherit this.
    """
    Device.current()  # describes the whole machine, so it has to be asked before
    before, allowed = torch.get_num_threads(), _allowed()
    torch.set_num_threads(threads)
    try:
        _pin(allowed[:threads])
        yield
    finally:
        _pin(allowed)
        torch.set_num_threads(before)


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pin(cpus: list[int]) -> None:
    if not cpus:
        return
    tasks = Path("/proc/self/task")
    numbers = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]
    for number in numbers:
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(number, cpus)


def _load() -> float | None:
    """Runnable processes in the last minute: others' work, and our own tuning if there was any."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
