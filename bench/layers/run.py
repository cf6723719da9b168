"""Run a plan: verify each case, then time its contenders against each other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone

from autotune.device import Device
from autotune.measure import interleave
from autotune.registry import Origin
from autotune.result import Result
from autotune.tuner import Watch, tune_family
from bench import peers, roofline
from bench.layers import overhead
from bench.layers.cases import Case, Judges, case_of, verify
from bench.layers.plan import HEADS, Plan
from bench.layers.problem import Problem, Subject, flops, problem_of, traffic
from bench.layers.results import Kernel, Measurement, Report, Row, Work
from bench.machine import Machine, confined
from bench.peers import PEERS, Offer
from flashrnn.dims import Dims
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.runtime.kernels import plan_for

TOP_K = 12  # candidates per kernel that tuning builds
# The contenders evict each other's data from the caches. A sample long enough to fetch it again
# shows what a call costs in a series of calls.
SAMPLE_SECONDS = 5e-3
OVERHEAD_SECONDS = 1.0

Step = Callable[[str, int, int], None]


def run(plan: Plan, *, step: Step, save: Callable[[Report], None]) -> Report:
    """Run it; `step(case, done, total)` is told of each case, `save` gets what there is after it.

    Kernels have the tiling that was remembered from tuning, or the one that the cost model prefers.
    Raises UnknownChoice and MissingPeer on peers; Disagreement where an implementation computes
    something else.
    """
    offers, missing = peers.load(plan.peers)
    end = time.monotonic() + 60 * plan.minutes if plan.minutes is not None else None
    report = Report(
        suite=plan.suite,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=Machine.current(),
        seconds=plan.seconds,
        cases=plan.cases,
        notes={PEERS[name].label: PEERS[name].notes for name in offers if PEERS[name].notes},
        missing=tuple(missing),
    )
    if plan.limits:
        report = _limits(plan, report, step)
        save(report)
    for problem, judges in _problems(plan):
        for row in _rows(plan, problem, judges, _for(problem.subject, plan, offers), step, report):
            report = report.with_row(row)
            save(report)
            if end is not None and time.monotonic() > end:
                return report
        gc.collect()  # of large tensors in cycles, before the next problem makes its own
    return report


def _limits(plan: Plan, report: Report, step: Step) -> Report:
    """The machine's peaks, and what a call of each cell costs beside its kernels."""
    roofs, overheads = [], []
    for threads in plan.threads:
        step(f"the machine's limits, threads: {threads}", 0, plan.cases)
        with confined(threads):
            roofs.append(roofline.measure(threads))
    with confined(1):
        for cell in dict.fromkeys(subject.cell for subject in plan.subjects):
            step(f"call overhead of {cell.name}", 0, plan.cases)
            overheads.append(overhead.measure(cell, OVERHEAD_SECONDS))
    return replace(report, roofs=tuple(roofs), overheads=tuple(overheads))


def _problems(plan: Plan) -> Iterator[tuple[Problem, Judges]]:
    """One at a time: large ones hold gigabytes."""
    for subject in plan.subjects:
        for shape in plan.shapes:
            problem = problem_of(subject, shape.dims(subject.heads), plan.dtype)
            yield problem, Judges.of(problem)


def _for(subject: Subject, plan: Plan, offers: Mapping[str, Offer]) -> Mapping[str, Offer]:
    """Cells beyond the well-known are compared with a loop only, unless peers are named."""
    if plan.peers is not None or subject.cell.name in HEADS:
        return offers
    return {name: offer for name, offer in offers.items() if name == "loop"}


def _rows(
    plan: Plan,
    problem: Problem,
    judges: Judges,
    offers: Mapping[str, Offer],
    step: Step,
    report: Report,
) -> Iterator[Row]:
    done = len(report.rows)
    for kind in plan.kinds:
        for threads in plan.threads:
            with confined(threads):
                case = case_of(problem, kind, threads, offers)
                step(case.label, done, plan.cases)
                yield _row(case, judges, plan)
            done += 1


def _row(case: Case, judges: Judges, plan: Plan) -> Row:
    compared = verify(case, judges)  # which also compiles the kernels and warms everyone up
    timings = interleave(
        {contender.label: contender.call for contender in case.contenders},
        seconds=plan.seconds,
        min_rounds=plan.rounds,
        warmup=0,
        sample_seconds=SAMPLE_SECONDS,
    )
    problem, kind = case.problem, case.kind
    measured = tuple(
        Measurement(label, timing, compared[label]) for label, timing in timings.items()
    )
    size = problem.dtype.bytes
    work = Work(
        flops(problem.subject, problem.dims, kind),
        traffic(problem.subject, problem.dims, kind, size),
        problem.weights["R"].numel() * size,
    )
    return Row(
        subject=problem.subject.label,
        cell=problem.cell.name,
        inputs=problem.input_name,
        dims=problem.dims,
        dtype=problem.dtype.name,
        kind=kind.label,
        threads=case.threads,
        work=work,
        kernels=_kernels(case),
        ours=measured[0],
        peers=measured[1:],
    )


def _kernels(case: Case) -> tuple[Kernel, ...]:
    """The kernels that ours used."""
    problem = case.problem
    directions = [FORWARD, *([BACKWARD] if case.kind.d_weights else [])]
    found = []
    for direction in directions:
        plan = plan_for(problem.cell, direction, problem.dtype, problem.dims, case.threads)
        found.append(Kernel(direction, plan.tuned, plan.tiling.as_config()))
    return tuple(found)


def tune(plan: Plan, *, seconds: float, watch: Watch) -> Iterator[tuple[Dims, int, Result]]:
    """Tune the kernels of each problem for about `seconds` and remember the results.

    Raises autotune's errors, and KeyboardInterrupt where a search was cut short.
    """
    for subject in plan.subjects:
        for shape in plan.shapes:
            for threads in plan.threads:
                dims = shape.dims(subject.heads)
                origin = _origin(subject, dims, plan, threads)
                for result in tune_family(
                    origin, Device.current(), budget_seconds=seconds, top_k=TOP_K, watch=watch
                ):
                    yield dims, threads, result
                    if result.interrupted:
                        raise KeyboardInterrupt


def _origin(subject: Subject, dims: Dims, plan: Plan, threads: int) -> Origin:
    """The cell's family, in words that the measuring process can follow."""
    return Origin(
        f"bench.layers.family:{subject.cell.name}",
        {
            "batch": dims.B,
            "time": dims.T,
            "heads": dims.N,
            "head_dim": dims.D,
            "dtype": plan.dtype.name,
            "threads": threads,
        },
    )
