"""Choose, compile, and choose again: every case of the matrix, whatever was kept of it left out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version

from autotune.compiler_report import tool_version
from autotune.compiling import Attempt, Job, Run, attempt, best, no_solution, reranked
from autotune.errors import NoGpuKernels
from autotune.gpu import Gpu
from autotune.registry import Origin, load_family, resolve
from autotune.space import Candidate, GpuFamily, GpuTunable
from bench.compiled.results import Case, Results, Row

TOP = 6  # candidates to compile where the first is not clean
AT_ONCE = 4  # cases, so that no compiler waits while others are asked for their next candidate
Save = Callable[[Results], None]
Step = Callable[[str, int, int], None]


@dataclass
class _Search:
    """One kernel of a case on its way: candidates in order, and what became of them."""

    case: Case
    origin: Origin
    index: int
    tunable: GpuTunable
    device: Gpu
    direction: str
    schedule: str
    forced_by: str
    candidates: list[Candidate]
    attempts: list[Attempt]

    @property
    def settled(self) -> bool:
        return any(a.clean for a in self.attempts) or len(self.attempts) == len(self.candidates)

    @property
    def job(self) -> Job:
        return Job(self.origin, self.index, self.candidates[len(self.attempts)].config)

    def made(self, row: Row) -> bool:
        """Whether an earlier row is of the same kernel, the same choice and prediction.

        What did not compile then may have been stopped by a busy machine: it is tried again.
        """
        config = self.candidates[0].config
        predicted = asdict(self.tunable.predict(config, self.device))
        same = row.first["config"] == config and row.first["predicted"] == predicted
        compiled = row.first["actual"] is not None
        return same and compiled and row.problem == self.tunable.problem()

    def row(self) -> Row:
        return Row(
            case=self.case,
            direction=self.direction,
            schedule=self.schedule,
            forced_by=self.forced_by,
            first=self.attempts[0].facts(),
            chosen=self._chosen().facts(),
            tried=len(self.attempts),
            problem=dict(self.tunable.problem()),
        )

    def _chosen(self) -> Attempt:
        ranked = reranked(self.attempts)
        return next((a for a in ranked if a.clean), ranked[0])


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
    known = {(row.case, row.direction, row.schedule): row for row in usable}
    rows: list[Row] = []
    for at in range(0, len(cases), AT_ONCE):
        step(str(cases[at]), at, len(cases))
        searches = [s for case in cases[at : at + AT_ONCE] for s in _searches(case, directions)]
        fresh = []
        for search in searches:
            row = known.get((search.case, search.direction, search.schedule))
            if row is not None and search.made(row):
                rows.append(row)
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
        made = compile_([search.job for search in unsettled])
        for search, result in zip(unsettled, made, strict=True):
            first = len(search.attempts)
            candidate = search.candidates[first]
            search.attempts.append(attempt(search.tunable, search.device, first, candidate, result))


def _searches(case: Case, directions: Sequence[str]) -> Iterator[_Search]:
    """The kernels of a case: of each direction, the first schedule that fits."""
    origin = origin_of(case)
    device = origin.gpu
    assert device is not None
    forced: dict[str, list[str]] = {}
    for index, tunable in enumerate(origin.gpu_tunables()):
        name, _, schedule = tunable.name.partition(", ")
        direction = name.removeprefix(f"{case.cell} ")
        if direction not in directions:
            continue
        candidates = best(tunable, device, TOP)
        if candidates:
            reasons = "; ".join(forced.pop(direction, []))
            yield _Search(
                case, origin, index, tunable, device, direction, schedule, reasons, candidates, []
            )
        else:
            reason = no_solution(tunable, device).splitlines()[1:]
            forced.setdefault(direction, []).append(", ".join(line.strip() for line in reason))
