"""Time functions on a GPU against each other: by its own clock, with a cold L2 cache, in turns.

The logic is written against `Stream`, so that it can be tested where there is no GPU; `CudaStream`
is all that touches one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from autotune.errors import CaptureInProgress, NotDeterministic
from autotune.measure import Timing
from autotune.space import Check, GpuRunner

Name = TypeVar("Name")


class Stream(Protocol):
    """What timing needs of a GPU's queue of work."""

    def capturing(self) -> bool:
        """Whether calls are being recorded into a graph instead of run."""
        ...

    def flush(self) -> None:
        """Enqueue work that replaces all that the L2 cache holds."""
        ...

    def mark(self) -> Any:
        """Enqueue a time stamp."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Between two time stamps; waits until both are taken."""
        ...


class CudaStream:
    """The current stream of torch's current GPU, whose L2 cache has `l2_bytes`."""

    # Of twice the cache each. After one, a kernel measured 40 µs longer on an H200 (median of 164)
    # than after five: the host had not enqueued it yet.
    FLUSHES = 5

    def __init__(self, l2_bytes: int) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._buffer = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")

    def capturing(self) -> bool:
        return capturing()

    def flush(self) -> None:
        for _ in range(self.FLUSHES):
            self._buffer.zero_()

    def mark(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3


def capturing() -> bool:
    """Whether torch records the calls of this thread into a CUDA graph."""
    torch = sys.modules.get("torch")
    return bool(
        torch is not None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )


def verify(runner: GpuRunner, stream: Stream) -> Check:
    """The runner's check; what passes must also give the same bits twice.

    Raises NotDeterministic, and CaptureInProgress inside of a graph capture.
    """
    if stream.capturing():
        raise CaptureInProgress
    check = runner.check()
    if check.ok and runner.results() != runner.results():
        raise NotDeterministic
    return check


def interleave(
    functions: Mapping[Name, Callable[[], object]],
    stream: Stream,
    *,
    seconds: float,
    min_rounds: int = 5,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, Timing]:
    """Time each function in turn, round after round, until `seconds` have passed by `clock`.

    A sample is one call, waited for, so that whoever hangs is the one that was called. Before it
    the L2 cache is flushed, which also keeps the GPU busy while the call is enqueued, so that the
    host's time is not measured, unless it is longer than that. Every second round goes backwards.
    At least `min_rounds` (>= 1) rounds are taken, after `warmup` calls of each function that do not
    count. Raises CaptureInProgress inside of a graph capture.
    """
    if min_rounds < 1:
        raise ValueError(f"min_rounds is {min_rounds}; a median needs at least 1")
    if stream.capturing():
        raise CaptureInProgress
    for function in functions.values():
        for _ in range(warmup):
            function()
    samples: dict[Name, list[float]] = {name: [] for name in functions}
    order = list(functions)
    end = clock() + seconds
    rounds = 0
    while rounds < min_rounds or clock() < end:
        for name in order if rounds % 2 == 0 else reversed(order):
            stream.flush()
            samples[name].append(once(functions[name], stream))
        rounds += 1
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def once(function: Callable[[], object], stream: Stream) -> float:
    """Seconds of one call by the GPU's clock; waits for it."""
    start = stream.mark()
    function()
    return stream.seconds(start, stream.mark())
