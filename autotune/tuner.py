"""The search: solve, rank, build, check, race, remember.

The default configuration takes part in every stage, and another one replaces it only by a lead
larger than the noise: a search that is cut short never leaves anyone worse off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import cast

from autotune import cache, measure_gpu
from autotune.compiling import Attempt, Job, attempt, compilers, conflicts, reranked
from autotune.device import Device
from autotune.errors import CaptureInProgress, NothingWorks, WorkerFailed
from autotune.gpu import Gpu
from autotune.measure import Timing
from autotune.registry import Origin
from autotune.result import Result, Trial, binding
from autotune.space import GpuTunable, Rivals, Space, Stepped, called, candidates, foremost
from autotune.worker import Worker

BUILD_SHARE = 0.5  # of the budget: builds that have not begun by then are left out
CHECK_SHARE = 0.75
LEAST_FIRST_CHECK_SECONDS = 20.0  # the reference is computed in the first check
ENOUGH_SECONDS = 1.0  # of samples per candidate and round; more does not narrow the medians
LEAST_ROUND_SECONDS = 0.05
LEAST_LEAD = 0.01  # of the default's time
FINALISTS = 6  # of those compiled for a GPU, to be timed

Watch = Callable[[str, str, int, int], None]


def _unwatched(name: str, stage: str, done: int, total: int) -> None:
    pass


def tune_family(
    origin: Origin,
    device: Device,
    *,
    budget_seconds: float,
    top_k: int,
    watch: Watch = _unwatched,
) -> Iterator[Result]:
    """Tune each problem of a family in turn; what one leaves of its budget the next may use."""
    end = time.monotonic() + budget_seconds
    problems = origin.rivals()
    for done, rivals in enumerate(problems):
        unfit = conflicts(rivals, device) if isinstance(device, Gpu) else {}
        for of in unfit:
            watch(rivals[of].name, "no configuration fits", 0, 0)  # another schedule may
        fit = {of: tunable for of, tunable in rivals.items() if of not in unfit}
        if not fit:
            continue
        share = (end - time.monotonic()) / (len(problems) - done)
        result = tune(fit, origin, device, budget_seconds=share, top_k=top_k, watch=watch)
        yield result
        if result.interrupted:
            return


def tune(
    rivals: Rivals,
    origin: Origin,
    device: Device,
    *,
    budget_seconds: float,
    top_k: int,
    patience: float = 5.0,
    watch: Watch = _unwatched,
) -> Result:
    """Find the fastest correct configuration of one problem's tunables, and remember it.

    `origin` makes the `rivals`; the measuring process makes them again from there. The `top_k`
    cheapest candidates by estimate, the cheapest of every rival and the default are built and
    checked. Once one was checked, a candidate that gives no answer for `patience` seconds (or ten
    times what the fastest check took, if that is longer) is given up. `watch(name, stage, done,
    total)` is told of progress.

    The budget is a target: the default is always built, checked and timed, however short it is.
    On Ctrl-C the best so far is returned, marked `interrupted`; before any candidate has passed
    its check there is nothing to return, and KeyboardInterrupt is raised.

    On a GPU the candidates are first compiled side by side, and only the best by what the compiler
    says, one of every rival among them, are checked and timed; the `device` must be this machine's.

    Raises NothingWorks if no candidate passes its check, and CaptureInProgress while a CUDA graph
    is captured.
    """
    if isinstance(device, Gpu) and measure_gpu.capturing():
        raise CaptureInProgress
    start = time.monotonic()
    watch(called(rivals), "solve", 0, 1)
    space = candidates(rivals, device)
    with Worker(origin) as worker:
        search = _Search(rivals, device, space, worker, start, budget_seconds, patience, watch)
        for at in space.best(top_k):
            candidate = space.candidates[at]
            description = rivals[candidate.of].describe(candidate.config)
            search.trials[at] = Trial(candidate, description)
        interrupted = False
        try:
            if isinstance(device, Gpu):
                search.compile(origin)
            else:
                search.build()
            search.check()
            search.race()
        except KeyboardInterrupt:
            if not search.passed():
                raise
            interrupted = True
    result = search.result(interrupted)
    cache.store(result.entry())
    return result


@dataclass
class _Search:
    """The state of one search. Trials are keyed by the candidate's position in the space."""

    rivals: Rivals
    device: Device
    space: Space
    worker: Worker
    start: float
    budget: float
    patience: float
    watch: Watch
    trials: dict[int, Trial] = field(default_factory=dict)
    latest: dict[int, Timing] = field(default_factory=dict)  # of the last complete round

    @property
    def name(self) -> str:
        return called(self.rivals)

    def left(self, share: float = 1.0) -> float:
        """Seconds until `share` of the budget is used."""
        return self.start + share * self.budget - time.monotonic()

    def passed(self) -> list[int]:
        """The candidates that are known to be right and still run."""
        return [at for at, trial in self.trials.items() if trial.status in ("checked", "timed")]

    def build(self) -> None:
        """Compile side by side, the default first."""
        self.worker.start()  # it imports its libraries while the compilers run
        with ThreadPoolExecutor(Device.current().cores) as pool:
            building = {pool.submit(self._build, at): at for at in self.trials}
            try:
                for done, future in enumerate(as_completed(building), 1):
                    self.watch(self.name, "build", done, len(building))
                    failure = future.exception()
                    if failure is not None:
                        reason = f"{type(failure).__name__}: {failure}"
                        self.trials[building[future]].fail("not built", reason)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise

    def _build(self, at: int) -> None:
        trial = self.trials[at]
        if at != self.space.default and self.left(BUILD_SHARE) <= 0:
            trial.fail("skipped", "the budget's share for building was used up")
            return
        self.rivals[trial.candidate.of].build(trial.config)
        trial.status = "built"

    def compile(self, origin: Origin) -> None:
        """Compile side by side for the GPU, the default first.

        The best by the report go on, the best of every rival, and the default.
        """
        rivals, gpu = cast("Mapping[int, GpuTunable]", self.rivals), cast("Gpu", self.device)
        with compilers(origin, Device.current().cores) as run:
            trials = self.trials.values()
            made = run([Job(origin, t.candidate.of, t.config) for t in trials])
            attempts: list[Attempt] = []
            for (at, trial), result in zip(self.trials.items(), made, strict=True):
                self.watch(self.name, "compile", len(attempts), len(self.trials))
                tunable = rivals[trial.candidate.of]
                attempts.append(attempt(tunable, gpu, at, trial.candidate, result))
                if self.left(BUILD_SHARE) <= 0:
                    break
        for trial in list(self.trials.values())[len(attempts) :]:
            trial.fail("skipped", "the budget's share for compiling was used up")
        judged = reranked(attempts)
        finalists = foremost(FINALISTS, [a.candidate for a in judged if not a.out])
        for rank, compiled in enumerate(judged):
            trial = self.trials[compiled.first]
            if compiled.out:
                trial.fail("not built", compiled.failure)
            elif rank not in finalists and compiled.first != self.space.default:
                trial.fail("skipped", f"not among the best {FINALISTS} by the compiler's report")
            else:
                trial.status = "built"

    def check(self) -> None:
        """Check what was built, the default first, then the cheapest estimate."""
        built = [at for at, trial in self.trials.items() if trial.status == "built"]
        limit = max(LEAST_FIRST_CHECK_SECONDS, self.budget)
        for done, at in enumerate(built):
            self.watch(self.name, "check", done, len(built))
            trial = self.trials[at]
            if self.left(CHECK_SHARE) <= 0 and self.passed():
                trial.fail("skipped", "the budget's share for checking was used up")
                continue
            start = time.monotonic()
            try:
                trial.check, trial.warm_seconds = self.worker.check(at, trial.candidate, limit)
            except WorkerFailed as failure:
                self._blame(failure)
                continue
            limit = max(self.patience, min(limit, 10 * (time.monotonic() - start)))
            if trial.check.ok:
                trial.status = "checked"
            else:
                told = f"{trial.check.what} is {trial.check.error:.2g}"
                trial.fail("wrong", f"{told}, at most {trial.check.bound:.2g} is allowed")
        if not self.passed():
            failures = [(trial.description, trial.reason) for trial in self.trials.values()]
            raise NothingWorks(self.name, failures)

    def race(self) -> None:
        """Time all that passed, then the faster half, until one is left beside the default."""
        contenders = [at for at in self.passed() if at != self.space.default]
        rounds = 1 + max(0, len(contenders) - 1).bit_length()  # halvings, then the duel
        for played in range(rounds):
            self.watch(self.name, "time", played, rounds)
            self._round(contenders, max(0.0, self.left()) / (rounds - played))
            contenders = [at for at in contenders if at in self.latest]
            contenders.sort(key=lambda at: self.latest[at].median)
            contenders = contenders[: math.ceil(len(contenders) / 2)]
            if self.left() <= 0:
                return

    def _round(self, contenders: list[int], seconds: float) -> None:
        """One interleaved timing; a candidate that fails in it is dropped and it starts again."""
        while True:
            runners = [at for at in (self.space.default, *contenders) if at in self.passed()]
            if not runners:
                return
            once = sum(self.trials[at].warm_seconds for at in runners)
            spend = min(seconds, max(ENOUGH_SECONDS * len(runners), 20 * once))
            spend = max(spend, LEAST_ROUND_SECONDS)
            asked = {at: self.trials[at].candidate for at in runners}
            try:
                timed = self.worker.time(asked, spend, 2 * spend + 20 * once + self.patience)
            except WorkerFailed as failure:
                self._blame(failure)
                continue
            self.latest = timed
            for at, timing in timed.items():
                self.trials[at].timing = timing
                self.trials[at].status = "timed"
            return

    def _blame(self, failure: WorkerFailed) -> None:
        """Mark the candidate that was running; without one the process itself is unusable."""
        if failure.candidate is None or self.trials[failure.candidate].reason:
            raise failure
        self.trials[failure.candidate].fail(failure.how, failure.reason)

    def winner(self) -> int:
        """The fastest of the last round, if it leads the default by more than the noise."""
        passed = self.passed()
        default = self.space.default
        timed = {at: timing for at, timing in self.latest.items() if at in passed}
        if not timed:
            return default if default in passed else passed[0]
        best = min(timed, key=lambda at: timed[at].median)
        if default in timed and not leads(timed[best], timed[default]):
            return default
        return best

    def result(self, interrupted: bool) -> Result:
        """The outcome, after the race or where it was cut short."""
        winner = self.winner()
        chosen = self.trials[winner]
        assert chosen.check is not None, "only what passed its check can win"
        mine, default = self.latest.get(winner), self.latest.get(self.space.default)
        tunable = self.rivals[chosen.candidate.of]
        return Result(
            name=tunable.name,
            device=self.device.fingerprint,
            problem=tunable.problem(),
            config=chosen.config,
            description=chosen.description,
            is_default=winner == self.space.default,
            binding=binding(tunable, self.device, chosen.config),
            check=chosen.check,
            seconds=mine.median if mine else None,
            default_seconds=default.median if default else None,
            trials=tuple(self.trials.values()),
            feasible=self.space.feasible,
            solve_seconds=self.space.solve_seconds,
            interrupted=interrupted,
            steps=tunable.steps if isinstance(tunable, Stepped) else 1,
        )


def leads(timing: Timing, default: Timing) -> bool:
    """Whether `timing` is faster than `default` by more than 1 % and more than both noises."""
    least = max(LEAST_LEAD * default.median, math.hypot(timing.noise, default.noise))
    return default.median - timing.median > least
