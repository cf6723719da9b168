"""Interleaved timing: ratios of known sleeps, turns, statistics."""

from __future__ import annotations

import gc
import math
import time

import pytest

from autotune.measure import Timing, interleave


def test_known_ratio() -> None:
    timings = interleave(
        {"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.03)}, seconds=0.3
    )
    ratio = timings["long"].median / timings["short"].median
    assert 2.0 < ratio < 3.6
    assert 0.01 <= timings["short"].median < 0.02


def test_a_short_function_is_repeated_within_a_sample() -> None:
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1

    timing = interleave({"tick": tick}, seconds=0.02, min_rounds=3)["tick"]
    assert calls > 100 * len(timing.samples)
    assert 0 < timing.median < 1e-4, "seconds of one call, not of one sample"


def test_functions_take_turns_and_the_order_alternates() -> None:
    turns: list[str] = []

    def turn(name: str) -> None:
        turns.append(name)
        time.sleep(0.002)

    functions = {name: lambda name=name: turn(name) for name in "abc"}
    interleave(functions, seconds=0.0, min_rounds=4, warmup=0)
    assert "".join(turns[3:]) == "abccbaabccba"  # the first three find the repeats


def test_at_least_min_rounds_and_not_more_than_the_time_allows() -> None:
    slow = {"slow": lambda: time.sleep(0.01)}
    assert len(interleave(slow, seconds=0.0, min_rounds=4)["slow"].samples) == 4
    assert 3 <= len(interleave(slow, seconds=0.5, min_rounds=1)["slow"].samples) <= 50
    with pytest.raises(ValueError, match="min_rounds is 0"):
        interleave(slow, seconds=0.1, min_rounds=0)


def test_collection_is_off_while_timing_and_on_again_after_a_failure() -> None:
    enabled: list[bool] = []

    def fail() -> None:
        enabled.append(gc.isenabled())
        time.sleep(0.002)
        if len(enabled) > 3:
            raise OSError("kernel failed")

    with pytest.raises(OSError, match="kernel failed"):
        interleave({"fail": fail}, seconds=0.1)
    assert enabled[-1] is False
    assert gc.isenabled()


def test_statistics() -> None:
    timing = Timing((4.0, 1.0, 3.0, 2.0))
    assert timing.median == 2.5
    assert timing.quartiles == (1.75, 3.25)
    assert timing.noise == pytest.approx(1.57 * 1.5 / math.sqrt(4))
    assert Timing((7.0,)).median == 7.0
    assert Timing((7.0,)).noise == 0.0
