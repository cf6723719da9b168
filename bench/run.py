"""Run a suite: verify each case, then time its contenders against each other."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import torch

from autotune.device import Device
from autotune.measure import interleave
from autotune.registry import Origin
from autotune.result import Result
from autotune.tuner import Watch, tune_family
from bench.cases import KINDS, Case, cases, verify
from bench.report import Kernel, Machine, Measurement, Report, Row
from bench.shapes import Suite, suite_of
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.runtime.kernels import plan_for

FAMILY = "flashrnn.families:lstm_family"
TOP_K = 12  # candidates per kernel that tuning builds
# The contenders evict each other's data from the caches. A sample long enough to fetch it again
# shows what a call costs in a series of calls.
SAMPLE_SECONDS = 5e-3
MIN_ROUNDS = 5

Step = Callable[[str, int, int], None]


def run(name: str, *, threads: int, seconds: float, step: Step) -> Report:
    """Run the suite of this name on `threads` threads, each case for about `seconds`.

    `step(case, done, total)` is told of each case before it starts. Kernels have the tiling that
    was remembered from tuning, or the one that the cost model prefers. Raises UnknownSuite;
    Disagreement where an implementation computes something else.
    """
    suite = suite_of(name)
    total = len(suite.shapes) * len(KINDS)
    load = _load()
    rows = []
    with _threads(threads):
        for done, case in enumerate(cases(suite)):
            step(case.label, done, total)
            rows.append(_row(case, threads, seconds))
    return Report(
        suite=name,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=Machine(
            fingerprint=Device.current().fingerprint,
            system=platform.platform(),
            python=platform.python_version(),
            torch=torch.__version__,
            load=load,
        ),
        threads=threads,
        seconds=seconds,
        rows=tuple(rows),
    )


def tune(
    suite: Suite, *, threads: int, seconds: float, watch: Watch
) -> Iterator[tuple[Dims, Result]]:
    """Tune the kernels of each shape for about `seconds` and remember the results.

    Raises autotune's errors, and KeyboardInterrupt where a search was cut short.
    """
    for dims in suite.shapes:
        options: dict[str, str | int | float | bool | None] = {
            "batch": dims.B,
            "time": dims.T,
            "heads": dims.N,
            "head_dim": dims.D,
            "dtype": suite.dtype.name,
            "threads": threads,
        }
        for result in tune_family(
            Origin(FAMILY, options),
            Device.current(),
            budget_seconds=seconds,
            top_k=TOP_K,
            watch=watch,
        ):
            yield dims, result
            if result.interrupted:
                raise KeyboardInterrupt


def _row(case: Case, threads: int, seconds: float) -> Row:
    compared = verify(case)  # which also compiles the kernels
    timings = interleave(
        {contender.label: contender.call for contender in case.contenders},
        seconds=seconds,
        min_rounds=MIN_ROUNDS,
        sample_seconds=SAMPLE_SECONDS,
    )
    dims, dtype = case.dims, case.dtype
    kernels = []
    for direction in (FORWARD, BACKWARD) if case.kind.d_weights else (FORWARD,):
        plan = plan_for(lstm, direction, dtype, dims, threads)
        kernels.append(Kernel(direction, plan.tuned, plan.tiling.as_config()))
    measured = tuple(
        Measurement(label, timing, compared[label]) for label, timing in timings.items()
    )
    return Row(dims, dtype.name, case.kind.label, tuple(kernels), measured[0], measured[1:])


def _load() -> float | None:
    """Runnable processes in the last minute: others' work, and our own tuning if there was any."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The same number of threads for everyone: torch's is also the one that our kernels use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
