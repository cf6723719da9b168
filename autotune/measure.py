"""Time functions against each other fairly: interleaved, repeated, judged by medians.

What disturbs a machine (other processes, the clock, the temperature) drifts over seconds. Functions
that take turns within milliseconds see the same disturbance, so their medians compare even where
neither of them is right on its own.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one value per sample, in the order they were taken."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return self._quantile(0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        return self._quantile(0.25), self._quantile(0.75)

    @property
    def noise(self) -> float:
        """Half the width of a 95 % interval of the median, in seconds.

        1.57 times the interquartile range over the square root of the number of samples: the
        notch of McGill, Tukey and Larsen, "Variations of box plots", Am. Stat. 32(1), 1978.
        """
        low, high = self.quartiles
        return 1.57 * (high - low) / math.sqrt(len(self.samples))

    def _quantile(self, fraction: float) -> float:
        ordered = sorted(self.samples)
        position = fraction * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def interleave(
    functions: Mapping[Name, Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    warmup: int = 1,
    sample_seconds: float = 1e-3,
) -> dict[Name, Timing]:
    """Time each function in turn, round after round, until `seconds` have passed.

    A sample repeats its function until it lasts about `sample_seconds`, and every second round
    goes backwards, so that no function always follows the same neighbour. At least `min_rounds`
    (>= 1) rounds are taken, after `warmup` calls of each function that do not count.
    """
    if min_rounds < 1:
        raise ValueError(f"min_rounds is {min_rounds}; a median needs at least 1")
    repeats = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        repeats[name] = _repeats(function, sample_seconds)

    samples: dict[Name, list[float]] = {name: [] for name in functions}
    order = list(functions)
    end = time.perf_counter() + seconds
    rounds = 0
    with _without_collection():
        while rounds < min_rounds or time.perf_counter() < end:
            for name in order if rounds % 2 == 0 else reversed(order):
                count = repeats[name]
                samples[name].append(_clock(functions[name], count) / count)
            rounds += 1
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _repeats(function: Callable[[], object], sample_seconds: float) -> int:
    """How many calls make up one sample."""
    count = 1
    while (taken := _clock(function, count)) < sample_seconds / 2:
        count *= 2
    return max(1, math.ceil(count * sample_seconds / taken)) if taken < sample_seconds else count


def _clock(function: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    return time.perf_counter() - start


@contextmanager
def _without_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
