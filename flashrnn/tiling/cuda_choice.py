"""Which CUDA schedule a head takes, and its tiling: the one with the shortest predicted time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Infeasible, Model, TimeLimit
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.errors import TilingError
from flashrnn.tiling import cuda, cuda_spread, cuda_step
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tiling.cuda_latency import BLOCK, AnyTiling, Tiling, seconds
from flashrnn.tiling.cuda_spread import SpreadTiling
from flashrnn.tiling.cuda_step import STEP, StepTiling

SCHEDULES = (BLOCK, CLUSTER, GRID)  # those that keep R on the chip; STEP is beside them
# How long the smallest set of limits that exclude each other is looked for, per schedule.
REASON_SECONDS = 1.0
# Registers to leave beside what a compiled first choice was short of.
SPARE = 12
IN_WORDS = {
    BLOCK: "one block",
    CLUSTER: "the blocks of a cluster",
    GRID: "the blocks of a grid",
    STEP: "a launch per step",
}


def schedule_of(tiling: AnyTiling) -> str:
    """One of SCHEDULES, or STEP."""
    if isinstance(tiling, StepTiling):
        return STEP
    return BLOCK if isinstance(tiling, BlockTiling) else tiling.exchange


def tiling_of(config: Mapping[str, int]) -> AnyTiling:
    """The tiling that a solution of any schedule's model means; TypeError for anything else."""
    if "threads" in config:
        return StepTiling(**config)
    return SpreadTiling.of_config(config) if "clustered" in config else BlockTiling(**config)


def model(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int = 0) -> Model:
    """Every tiling of a schedule that fits the GPU; spare: registers to leave, where R has any."""
    if schedule == STEP:
        return cuda_step.model(problem, gpu)
    if schedule == BLOCK:
        return cuda.model(problem, gpu, spare)
    return cuda_spread.model(problem, gpu, schedule, spare)


def predict(problem: CudaProblem, tiling: AnyTiling) -> Prediction:
    """What the compiler will need."""
    if isinstance(tiling, StepTiling):
        return cuda_step.predict(tiling)
    if isinstance(tiling, BlockTiling):
        return cuda.predict(problem, tiling)
    return cuda_spread.predict(problem, tiling)


def source_of(problem: CudaProblem, tiling: AnyTiling) -> str:
    """The kernel's source for this tiling."""
    if isinstance(tiling, StepTiling):
        return cuda_step.source_of(problem, tiling)
    if isinstance(tiling, BlockTiling):
        return cuda.source_of(problem, tiling)
    return cuda_spread.source_of(problem, tiling)


def products_per_step(problem: CudaProblem, tiling: Tiling) -> int:
    """Tensor-core instructions of one warp in one step."""
    if isinstance(tiling, BlockTiling):
        return cuda.products_per_step(problem, tiling)
    return cuda_spread.products_per_step(problem, tiling)


def binding(problem: CudaProblem, tiling: Tiling, gpu: Gpu) -> str:
    """What would be exceeded if one more operand of R went to registers, or to shared memory."""
    if not problem.products:
        return "nothing: the cell has no dense product"
    words, most = [], problem.k_tiles
    if isinstance(tiling, SpreadTiling):
        most = -(-most // tiling.warps_k)
    for more, where in ((1, "in registers"), (-1, "in shared memory")):
        held = tiling.k_tiles_in_registers + more
        if not 0 <= held <= most:
            words.append(f"all of R is {where}")
            continue
        changed = replace(tiling, k_tiles_in_registers=held)
        needed = predict(problem, changed)
        if resources.occupancy(
            gpu.architecture, needed.threads, needed.registers, needed.shared_bytes
        ):
            if admits(problem, gpu, changed):
                words.append(f"one more k tile would fit {where}")
            else:
                words.append(f"one more k tile {where} exceeds registers while R is loaded")
            continue
        limit = resources.limiting(
            gpu.architecture, needed.threads, needed.registers, needed.shared_bytes
        )
        words.append(f"one more k tile {where} exceeds {limit}")
    return "; ".join(words)


@lru_cache(maxsize=1024)
def cheapest(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int = 0) -> Tiling:
    """The tiling of a schedule with the shortest predicted time.

    spare: registers to leave beside the estimate. Raises Infeasible where nothing fits.
    """
    return cheapest_of(problem, gpu, tilings(problem, gpu, schedule, spare))


def tilings(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int = 0) -> list[Tiling]:
    """Every tiling of a schedule that fits. Raises Infeasible where none does."""
    _smallest_model(problem, gpu, schedule, spare).solve()
    return [_on_chip(found) for found in model(problem, gpu, schedule, spare).solutions()]


def _smallest_model(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int) -> Model:
    """Of one tile of rows. More in flight need more, so that where none fits, none fits at all.

    To prove that for one takes a quarter of the time.
    """
    B = min(problem.dims.B, cuda.ROWS)
    return model(replace(problem, dims=replace(problem.dims, B=B)), gpu, schedule, spare)


def cheapest_of(problem: CudaProblem, gpu: Gpu, among: Sequence[Tiling]) -> Tiling:
    """The one with the shortest predicted time of some tilings, at least one.

    Among equals the first of SCHEDULES, then the fewest tiles of rows in flight, and what reads the
    least of R from shared memory.
    """

    def key(tiling: Tiling) -> tuple[float, int, int, int, int]:
        held, schedule = tiling.k_tiles_in_registers, SCHEDULES.index(schedule_of(tiling))
        in_flight = tiling.tiles_in_flight if isinstance(tiling, SpreadTiling) else 1
        return seconds(problem, tiling, gpu), schedule, in_flight, -held, tiling.warps

    return min(among, key=key)


def _on_chip(solution: Mapping[str, int]) -> Tiling:
    tiling = tiling_of(solution)
    assert not isinstance(tiling, StepTiling)
    return tiling


def choose(
    problem: CudaProblem, gpu: Gpu, schedules: Collection[str] = SCHEDULES, spare: int = 0
) -> Tiling:
    """The tiling with the shortest predicted time of the schedules that fit.

    spare: registers to leave beside the estimate, `lacking` after a first choice was compiled.
    Raises TilingError, which names what rules each of them out.
    """
    found = []
    for schedule in schedules:
        with suppress(Infeasible):
            found.append(cheapest(problem, gpu, schedule, spare))
    if found:
        return cheapest_of(problem, gpu, found)
    # looked for only here: what excludes what takes longer to find than what fits
    reasons = [f"in {IN_WORDS[s]}: {_limits(problem, gpu, s, spare)}" for s in schedules]
    most = max(largest(problem, gpu, schedule) for schedule in schedules)
    raise TilingError(
        f"no tiling holds a head of D={problem.dims.D} of {problem.program.cell.name} "
        f"({problem.direction}, {problem.dtype.name}) on {gpu.name}: {'; '.join(reasons)}; "
        f"the largest D that fits is {most}"
    )


def lacking(problem: CudaProblem, tiling: Tiling, gpu: Gpu, spilled_bytes: int) -> int:
    """Registers to spare in a second choice, by what the compiler spilled per thread in the first.

    It took all there are and so many more: by that much, and a little, the estimate was too low.
    """
    needed = predict(problem, tiling)
    left = resources.most_registers(gpu.architecture, needed.threads) - needed.registers
    return left + -(-spilled_bytes // 4) + SPARE


def second(
    problem: CudaProblem, first: Tiling, gpu: Gpu, spilled_bytes: int,
    schedules: Collection[str] = SCHEDULES,
) -> Tiling | None:  # fmt: skip
    """What to compile where the compiler spilled in a first choice; None where nothing else fits.

    spilled_bytes: per thread.
    """
    spare = lacking(problem, first, gpu, spilled_bytes)
    left = [schedule for schedule in schedules if fits(problem, gpu, schedule, spare)]
    return choose(problem, gpu, left, spare) if left else None


def _limits(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int) -> str:
    """What cannot hold together, in words."""
    try:
        error = _smallest_model(problem, gpu, schedule, spare).explain(time_limit=REASON_SECONDS)
    except TimeLimit:
        return f"some of its limits (in {REASON_SECONDS:g} s it was not found which)"
    assert error is not None
    return ", ".join(rule.name or str(rule) for rule in error.conflict)


def largest(problem: CudaProblem, gpu: Gpu, schedule: str) -> int:
    """The largest multiple of 16 that D can be for a head to fit a schedule; 0 for none."""
    low, high = 0, 1
    while _holds(problem, gpu, schedule, 16 * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(problem, gpu, schedule, 16 * middle):
            low = middle
        else:
            high = middle
    return 16 * low


def _holds(problem: CudaProblem, gpu: Gpu, schedule: str, D: int) -> bool:
    return fits(replace(problem, dims=replace(problem.dims, D=D)), gpu, schedule)


def admits(problem: CudaProblem, gpu: Gpu, tiling: AnyTiling) -> bool:
    """Whether a tiling is one of its schedule's model."""
    try:
        model(problem, gpu, schedule_of(tiling)).solve(assume=tiling.as_config())
    except Infeasible:
        return False
    return True


def fits(problem: CudaProblem, gpu: Gpu, schedule: str, spare: int = 0) -> bool:
    """Whether a schedule has a tiling."""
    try:
        _smallest_model(problem, gpu, schedule, spare).solve()
    except Infeasible:
        return False
    return True
