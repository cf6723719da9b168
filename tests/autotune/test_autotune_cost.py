"""The roofline: more of anything never costs less, and the slowest resource decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cost import Work, cycles, seconds
from autotune.device import LEVELS, describe

DEVICE = replace(
    describe(Path("/nowhere"), range(1)),
    fma_per_cycle=2,
    loads_per_cycle=2,
    l1_bytes_per_cycle=128,
    l2_bytes_per_cycle=32,
    l3_bytes_per_cycle=10,
    memory_bytes_per_cycle=4,
    clock_mhz=2000,
)
AMOUNT = st.floats(0, 1e12)
WORK = st.builds(
    Work,
    fma=AMOUNT,
    loads=AMOUNT,
    transcendental_cycles=AMOUNT,
    bytes=st.fixed_dictionaries(dict.fromkeys(LEVELS, AMOUNT)),
    overhead_cycles=AMOUNT,
)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(fma=100), 50),
        (Work(fma=100, transcendental_cycles=30), 80),
        (Work(fma=100, loads=300), 150),
        (Work(fma=100, bytes={"l2": 320, "memory": 400}), 100),
        (Work(fma=100, bytes={"l3": 1000}, overhead_cycles=7), 107),
        (Work(), 0),
    ],
)
def test_the_slowest_resource_decides(work: Work, expected: float) -> None:
    assert cycles(work, DEVICE) == expected
    assert seconds(work, DEVICE) == pytest.approx(expected / 2e9)


@given(WORK, st.sampled_from(["fma", "loads", "transcendental_cycles", "overhead_cycles", *LEVELS]))
def test_more_work_never_costs_less(work: Work, what: str) -> None:
    if what in LEVELS:
        more = replace(work, bytes={**work.bytes, what: 2 * work.bytes[what] + 1})
    else:
        more = replace(work, **{what: 2 * getattr(work, what) + 1})
    assert cycles(more, DEVICE) >= cycles(work, DEVICE)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_counts_and_outer_levels_cost_more(level: str) -> None:
    cost = [cycles(Work(bytes={name: 1e6}), DEVICE) for name in LEVELS]
    assert cost == sorted(cost) and len(set(cost)) == len(cost)
    assert cycles(Work(bytes={level: 1e6}), DEVICE) > 0


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(KeyError, match="l4"):
        cycles(Work(bytes={"l4": 1}), DEVICE)
