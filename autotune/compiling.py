"""Compile a GPU kernel's best candidates without a GPU, and rank them by what the compiler says.

The cost model ranks before anything is compiled, and believes its predictions. The compiled kernel
corrects it: what does not compile, exceeds what the device gives one block or cannot launch is
out; spills cost time, and a small one may still be the best there is.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

from autotune import compiler_report
from autotune.compiler_report import Report
from autotune.errors import AutotuneError, WorkerFailed
from autotune.gpu import Gpu
from autotune.registry import Origin
from autotune.space import (
    Candidate,
    Config,
    GpuTunable,
    Prediction,
    Rivals,
    Tunable,
    foremost,
    ranked,
    solutions,
)
from autotune.worker import Worker
from constrint import Infeasible

LIMIT_SECONDS = 30.0
Made = Report | AutotuneError


@dataclass(frozen=True)
class Job:
    """One configuration to compile, of tunable number `index` of what `origin` makes."""

    origin: Origin
    index: int
    config: Config


Run = Callable[[Sequence[Job]], Iterator[Made]]


@dataclass(frozen=True)
class Attempt:
    """One candidate as predicted and as compiled; `failure` says why there is no report.

    `blocks` per multiprocessor follow from the report; `seconds` is the estimate with what the
    report adds to it, infinite for what is out. `first` is the candidate's rank before compiling,
    from 0.
    """

    candidate: Candidate
    description: str
    first: int
    prediction: Prediction
    report: Report | None
    failure: str
    blocks: int
    seconds: float

    @property
    def out(self) -> bool:
        return not math.isfinite(self.seconds)

    @property
    def clean(self) -> bool:
        """Compiled, launches, and keeps everything in registers."""
        return self.report is not None and not self.out and not self.report.spilled

    def facts(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "config": self.candidate.config,
            "description": self.description,
            "rank_before": self.first,
            "estimated_seconds": self.candidate.estimate,
            "seconds": None if self.out else self.seconds,
            "predicted": asdict(self.prediction),
            "actual": self.report and self.report.facts(),
            "blocks_per_sm": self.blocks,
            "failure": self.failure,
        }


def best(rivals: Rivals, device: Gpu, count: int) -> list[Candidate]:
    """The `count` cheapest candidates by the cost model, and the cheapest of every rival.

    None where no configuration fits the device.
    """
    ordered = ranked(solutions(rivals, device), rivals, device)
    return [ordered[at] for at in foremost(count, ordered)]


def conflicts(rivals: Rivals, device: Gpu) -> dict[int, Infeasible]:
    """Why no configuration fits the device, of those of which none does."""
    found = ((of, conflict(tunable, device)) for of, tunable in rivals.items())
    return {of: error for of, error in found if error is not None}


def conflict(tunable: Tunable[Gpu], device: Gpu) -> Infeasible | None:
    """Why no configuration fits the device, with the constraints; None where one fits."""
    try:
        tunable.model(device).solve()
    except Infeasible as error:
        return error
    return None


@contextmanager
def compilers(first: Origin, workers: int, limit_seconds: float = LIMIT_SECONDS) -> Iterator[Run]:
    """`workers` processes that compile, as a function of many jobs.

    They start with what `first` makes. Results come in the order of the jobs. A process that has
    not answered after `limit_seconds` is killed with all that it started, and another one takes
    its place. Raises MissingExtra where the tools are not installed.
    """
    compiler_report.tools()
    with ExitStack() as stack:
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for _ in range(workers):
            idle.put(stack.enter_context(Worker(first)))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # before the workers end

        def one(job: Job) -> Made:
            worker = idle.get()
            try:
                return compiler_report.report(
                    worker.compile(job.origin, job.index, job.config, limit_seconds)
                )
            except AutotuneError as error:
                return error
            finally:
                idle.put(worker)

        yield lambda jobs: pool.map(one, jobs)


def survey(run: Run, origin: Origin, rivals: Rivals, device: Gpu, top: int) -> list[Attempt]:
    """The best candidates of what `origin` makes compiled, best first by what the compiler says.

    Those are the `top` cheapest, and the cheapest of every rival. Empty where nothing fits.
    """
    candidates = best(rivals, device, top)
    made = run([Job(origin, candidate.of, candidate.config) for candidate in candidates])
    return reranked(
        [
            attempt(cast("GpuTunable", rivals[candidate.of]), device, first, candidate, result)
            for first, (candidate, result) in enumerate(zip(candidates, made, strict=True))
        ]
    )


def attempt(
    tunable: GpuTunable, device: Gpu, first: int, candidate: Candidate, made: Made
) -> Attempt:
    """Judge what the compiler made of a candidate."""
    report = made if isinstance(made, Report) else None
    failure, blocks, seconds = "", 0, math.inf
    if report is not None:
        blocks = report.occupancy(device.architecture)
        if blocks == 0:
            failure = f"cannot launch: {report.limiting(device.architecture)}"
        else:
            seconds = candidate.estimate * spill_factor(report)
    elif isinstance(made, WorkerFailed):
        failure = f"{made.how}: {made.reason}"
    else:
        failure = str(made)
    return Attempt(
        candidate=candidate,
        description=tunable.describe(candidate.config),
        first=first,
        prediction=tunable.predict(candidate.config, device),
        report=report,
        failure=failure,
        blocks=blocks,
        seconds=seconds,
    )


def spill_factor(report: Report) -> float:
    """How much longer a step takes for its spills: at least 1.

    A warp's access of 4 bytes per thread takes the L1 cache one cycle, in which the four
    schedulers of a multiprocessor issue four instructions. Spills outside the loop are passed
    once, not in every step: they cost nothing here.
    """
    code = report.code if report.step is None else report.step.code
    spilled = code.bytes("local load") + code.bytes("local store")
    return 1.0 + spilled / max(1, len(code))


def reranked(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Best first; among equals the one with fewer instructions per step, what is out last."""

    def key(attempt: Attempt) -> tuple[float, int, int]:
        step = attempt.report.step if attempt.report and not attempt.out else None
        return attempt.seconds, len(step.code) if step else 0, attempt.first

    return sorted(attempts, key=key)
