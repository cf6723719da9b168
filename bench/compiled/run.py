"""Choose, compile, and choose again: every case of the matrix, whatever was kept of it left out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version

from autotune.compiler_report import tool_version
from autotune.compiling import Attempt, Job, Run, attempt, best, conflict, reranked
from autotune.errors import NoGpuKernels
from autotune.gpu import Gpu
from autotune.registry import Origin, load_family, resolve
from autotune.space import Candidate, GpuFamily, GpuTunable
from bench.compiled.results import Case, Results, Row

TOP = 6  # candidates to compile where the first is not clean
AT_ONCE = 4  # cases, so that no compiler waits while others are asked for their next candidate
Save = Callable[[Results], None]
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Schedule:
    """The best candidates of one schedule."""

    name: str
    tunable: GpuTunable
    candidates: Sequence[Candidate]


@dataclass
class _Search:
    """One kernel of a case on its way: every schedule that fits, and what became of candidates.

    A schedule's turn comes when no candidate of those before it is clean.
    """

    case: Case
    origin: Origin
    device: Gpu
    direction: str
    schedules: list[_Schedule]
    forced_by: str
    attempts: list[list[Attempt]]  # of each schedule so far

    @property
    def settled(self) -> bool:
        made = self.attempts[-1]
        if any(a.clean for a in made):
            return True
        exhausted = len(made) == len(self.schedule.candidates)
        return exhausted and len(self.attempts) == len(self.schedules)

    @property
    def schedule(self) -> _Schedule:
        """The one whose turn it is."""
        return self.schedules[len(self.attempts) - 1]

    def next_candidate(self) -> Candidate:
        if len(self.attempts[-1]) == len(self.schedule.candidates):
            self.attempts.append([])
        return self.schedule.candidates[len(self.attempts[-1])]

    def made(self, row: Row) -> bool:
        """Whether an earlier row is of the same kernel, the same choice and prediction.

        What is not right may have been stopped by a busy machine: it is tried again.
        """
        first = self.schedules[0]
        config = first.candidates[0].config
        predicted = asdict(first.tunable.predict(config, self.device))
        same = row.first["config"] == config and row.first["predicted"] == predicted
        return same and row.right_after and row.problem == first.tunable.problem()

    def row(self) -> Row:
        first, best_first = self.schedules[0], reranked(self.attempts[0])[0]
        clean = [a for made in self.attempts for a in reranked(made) if a.clean]
        left = self.schedule if clean else first
        return Row(
            case=self.case,
            direction=self.direction,
            schedule=first.name,
            chosen_schedule=left.name,
            forced_by=self.forced_by if left is first else _spilled(first, best_first),
            first=self.attempts[0][0].facts(),
            chosen=(clean or [best_first])[0].facts(),
            tried=sum(len(made) for made in self.attempts),
            problem=dict(first.tunable.problem()),
        )


def _spilled(schedule: _Schedule, best_of_it: Attempt) -> str:
    report, tried = best_of_it.report, len(schedule.candidates)
    told = best_of_it.failure or (report and f"it spills {report.spill_store_bytes} bytes")
    return f"none of {tried} {schedule.name} tilings compiles without spills (the best: {told})"


def origin_of(case: Case) -> Origin:
    """The case as the options of the cell's family; what it does not say is the family's default.

    Raises NoGpuKernels where the family has none.
    """
    reference = resolve(case.cell)
    family = load_family(reference)
    if not isinstance(family, GpuFamily):
        raise NoGpuKernels(case.cell)
    parser = argparse.ArgumentParser()
    family.add_gpu_arguments(parser.add_argument_group())
    words = ["--head-dim", str(case.head_dim), "--dtype", case.dtype]
    return Origin(reference, {**vars(parser.parse_args(words)), "device": case.device})


def versions() -> dict[str, str]:
    """Of what decides the results: Triton, and its two assemblers."""
    return {
        "triton": version("triton"),
        "ptxas": tool_version("ptxas"),
        "ptxas-blackwell": tool_version("ptxas-blackwell"),
    }


def run(
    cases: Sequence[Case],
    directions: Sequence[str],
    compile_: Run,
    kept: Results | None,
    save: Save,
    step: Step,
) -> Results:
    """All cases; rows of `kept` that are not out of date are taken as they are.

    `directions` are the kernels of a case that are wanted. `save` is called after each handful of
    cases, so that an interrupted run goes on from there.
    """
    now = versions()
    usable = kept.rows if kept is not None and kept.versions == now else ()
    known = {(row.case, row.direction): row for row in usable}
    rows: list[Row] = []
    for at in range(0, len(cases), AT_ONCE):
        step(str(cases[at]), at, len(cases))
        searches = [s for case in cases[at : at + AT_ONCE] for s in _searches(case, directions)]
        fresh = []
        for search in searches:
            row = known.get((search.case, search.direction))
            if row is not None and search.made(row):
                moved = row.chosen_schedule != row.schedule
                rows.append(row if moved else replace(row, forced_by=search.forced_by))
            else:
                fresh.append(search)
        _settle(fresh, compile_)
        rows.extend(search.row() for search in fresh)
        others = [row for row in usable if row.case in cases[at + AT_ONCE :]]
        results = Results(now, datetime.now(timezone.utc).isoformat(timespec="minutes"),
                          (*rows, *others))  # fmt: skip
        if fresh:
            save(results)
    return Results(now, datetime.now(timezone.utc).isoformat(timespec="minutes"), tuple(rows))


def _settle(searches: Sequence[_Search], compile_: Run) -> None:
    """Compile the first choice of each, then the next one of those that are not clean yet."""
    while unsettled := [search for search in searches if not search.settled]:
        candidates = [search.next_candidate() for search in unsettled]
        made = compile_(
            [
                Job(search.origin, candidate.of, candidate.config)
                for search, candidate in zip(unsettled, candidates, strict=True)
            ]
        )
        for search, candidate, result in zip(unsettled, candidates, made, strict=True):
            attempts, tunable = search.attempts[-1], search.schedule.tunable
            attempts.append(attempt(tunable, search.device, len(attempts), candidate, result))


def _searches(case: Case, directions: Sequence[str]) -> Iterator[_Search]:
    """The kernels of a case: of each direction, the schedules that fit, in order."""
    origin = origin_of(case)
    device = origin.gpu
    assert device is not None
    fitting: dict[str, list[_Schedule]] = {}
    forced: dict[str, list[str]] = {}
    for index, tunable in enumerate(origin.gpu_tunables()):
        name, _, schedule = tunable.name.partition(", ")
        direction = name.removeprefix(f"{case.cell} ")
        if direction not in directions:
            continue
        candidates = best({index: tunable}, device, TOP)
        if candidates:
            of_direction = fitting.setdefault(direction, [])
            of_direction.append(_Schedule(schedule, tunable, candidates))
        elif direction not in fitting:
            error = conflict(tunable, device)
            limits = [rule.name or str(rule) for rule in error.conflict] if error else []
            forced.setdefault(direction, []).append(" and ".join(limits))
    for direction, schedules in fitting.items():
        reasons = "; ".join(forced.get(direction, []))
        yield _Search(case, origin, device, direction, schedules, reasons, [[]])
