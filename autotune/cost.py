"""The roofline that ranks candidates before anything is compiled.

A kernel counts the work of its busiest core; the machine's limits turn the counts into seconds.
The resources overlap, so the slowest one decides (Williams, Waterman and Patterson, "Roofline",
CACM 52(4), 2009); only `overhead_cycles` (barriers, loop set-up) is added on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.device import Cpu


@dataclass(frozen=True)
class Work:
    """What the busiest core does in one run.

    `fma` and `loads` count full-width vector instructions; `transcendental_cycles` is time that
    exp, tanh and divisions keep the arithmetic pipes busy; `bytes` says how much is fetched from
    each level: "l1", "l2", "l3", "memory".
    """

    fma: float = 0.0
    loads: float = 0.0
    transcendental_cycles: float = 0.0
    bytes: Mapping[str, float] = field(default_factory=dict)
    overhead_cycles: float = 0.0


def cycles(work: Work, device: Cpu) -> float:
    """Estimated clock cycles of `work` on one core of `device`."""
    arithmetic = work.fma / device.fma_per_cycle + work.transcendental_cycles
    loading = work.loads / device.loads_per_cycle
    traffic = (n / device.bytes_per_cycle(level) for level, n in work.bytes.items())
    return max(arithmetic, loading, *traffic) + work.overhead_cycles


def seconds(work: Work, device: Cpu) -> float:
    """Estimated seconds of `work` on `device`."""
    return cycles(work, device) / (device.clock_mhz * 1e6)
