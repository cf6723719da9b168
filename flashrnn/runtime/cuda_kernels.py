"""Which CUDA kernel serves a call: its tiling by a pack or the model, compiled and loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from autotune import cache
from autotune.gpu import Gpu
from flashrnn import packs
from flashrnn.dims import Dims
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.errors import BackendError, TilingError
from flashrnn.ir.cell import Cell
from flashrnn.packs import CUDA
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_cache import cubin_of
from flashrnn.runtime.cuda_compile import headers
from flashrnn.runtime.cuda_driver import Argument, Function, Shape
from flashrnn.runtime.gpu_tensors import device_of, gpu_dtype_of, is_capturing, on_device
from flashrnn.runtime.tuned import Selected, discard, remembered
from flashrnn.tiling import cuda_step
from flashrnn.tiling.cuda import ROWS, WARP, BlockTiling, CudaProblem, in_tiles
from flashrnn.tiling.cuda_choice import (
    IN_WORDS,
    SCHEDULES,
    admits,
    choose,
    fits,
    predict,
    schedule_of,
    second,
    source_of,
    tiling_of,
)
from flashrnn.tiling.cuda_latency import AnyTiling, Tiling, seconds
from flashrnn.tiling.cuda_spread import SpreadTiling, exchange_bytes, groups, items
from flashrnn.tiling.cuda_step import StepTiling

# Blocks that a grid can have along y.
MOST_ALONG_Y = 65535
# Per group of blocks and tile in flight: `counter_spacing` in csrc/cuda/exchange.hpp.
COUNTER_WORDS = 32


@dataclass(frozen=True)
class Plan:
    """A loaded kernel and its tiling. groups: of blocks that a launch may have."""

    problem: CudaProblem
    tiling: Tiling
    function: Function
    groups: int

    def predicted(self, gpu: Gpu) -> float:
        """Seconds of a call by the latency model, what the compiler spilled counted."""
        return seconds(self.problem, self.tiling, gpu, self.function.spilled_bytes)

    def launch(self, dims: Dims, like: torch.Tensor, arguments: tuple[Argument, ...]) -> None:
        """Run it with a schedule's Arguments, but for those of the exchange.

        One launch; of a grid of blocks as many as it takes for all heads and tiles of rows, each
        launch with counters of its own.
        """
        tiling = self.tiling
        if isinstance(tiling, BlockTiling):
            self.function.launch((-(-dims.B // ROWS), dims.N), arguments)
            return
        needed = items(dims, tiling)
        most = min(self.groups, needed)
        exchange: torch.Tensor | None = None
        if tiling.exchange == GRID:
            size = most * exchange_bytes(self.problem, tiling)
            exchange = like.new_zeros(size, dtype=torch.uint8)
        for first in range(0, needed, most):
            count = min(most, needed - first)
            arrived: torch.Tensor | None = None
            if exchange is not None:
                counters = count * tiling.tiles_in_flight
                arrived = like.new_zeros((counters, COUNTER_WORDS), dtype=torch.int32)
            grid = tiling.blocks, count
            self.function.launch(grid, (*arguments, exchange, arrived, first))


@dataclass(frozen=True)
class StepPlan:
    """A loaded kernel that is launched once per step, beside a library's product."""

    tiling: StepTiling
    function: Function

    def launch(self, dims: Dims, arguments: tuple[Argument, ...]) -> None:
        """Run it with a schedule's Arguments, a thread for each unit of each row."""
        blocks = -(-dims.B * dims.N * dims.D // self.tiling.threads)
        self.function.launch((blocks, 1), arguments)


AnyPlan = Plan | StepPlan
_plans: dict[object, tuple[int, AnyPlan]] = {}
_functions: dict[object, Function] = {}


def plan_for(cell: Cell, direction: str, like: torch.Tensor, dims: Dims) -> AnyPlan:
    """The plan for these sizes, in the dtype and on the device of `like`; T takes no part.

    What tuning left, else a pack's tiling or the model's. What was tuned since takes the place of a
    known plan, but while a CUDA graph is captured.

    Raises TilingError where a cell without a product has no tiling, BackendError where a kernel
    would have to be compiled while a CUDA graph is captured, and what `cubin_of` and `Function`
    raise.
    """
    tiles = -(-dims.B // ROWS)
    key = cell.key, direction, like.dtype, tiles, dims.N, dims.D, like.device
    known = _plans.get(key)
    if known is None or (known[0] != cache.generation() and not is_capturing(like)):
        if is_capturing(like):
            raise BackendError(
                f"the CUDA kernel of {cell.name} ({direction}) for {tiles} tiles of {ROWS} rows, "
                f"N={dims.N}, D={dims.D} is not loaded, which cannot be done while a CUDA graph is "
                "captured; run the call once before the capture"
            )
        dtype = gpu_dtype_of(like.dtype, backend="cuda")
        problem = in_tiles(CudaProblem(lower(cell), direction, dtype, replace(dims, T=1)))
        with on_device(like):
            plan = _planned(problem, device_of(like), like.device)
        known = _plans[key] = cache.generation(), plan
    return known[1]


def _planned(problem: CudaProblem, gpu: Gpu, device: torch.device) -> AnyPlan:
    """What tuning left; else the first of the choices that the driver holds.

    Where there is none, a launch per step, if the cell has a product.
    """
    selected = tuned(problem, gpu)
    if selected is not None:
        try:
            return plan_with(problem, selected.tiling, gpu, device)
        except TilingError as error:
            discard(problem.program.cell.name, str(error))
    left, told = list(SCHEDULES), []
    for tiling in _choices(problem, gpu):
        try:
            plan = plan_with(problem, tiling, gpu, device)
        except TilingError as error:
            told.append(str(error))
            left.remove(schedule_of(tiling))
        else:
            return _unspilled(plan, gpu, device, left) if isinstance(plan, Plan) else plan
    if not problem.products:
        if not told:
            choose(problem, gpu)  # which says what rules each schedule out
        raise TilingError("; ".join(told))
    return plan_with(problem, cuda_step.choose(problem, gpu), gpu, device)


def _unspilled(plan: Plan, gpu: Gpu, device: torch.device, schedules: Sequence[str]) -> Plan:
    """The plan; where the compiler spilled in it, the better of it and a second choice.

    Nothing is kept of this but the cubins of both, on the disk: who comes next compiles neither.
    """
    spilled = plan.function.spilled_bytes
    tiling = second(plan.problem, plan.tiling, gpu, spilled, schedules) if spilled else None
    if tiling is None:
        return plan
    try:
        other = plan_with(plan.problem, tiling, gpu, device)
    except TilingError:  # the driver does not hold it
        return plan
    assert isinstance(other, Plan)
    return min(plan, other, key=lambda p: p.predicted(gpu))


def plan_with(problem: CudaProblem, tiling: AnyTiling, gpu: Gpu, device: torch.device) -> AnyPlan:
    """The plan of a tiling, its kernel compiled and loaded on the current device.

    Raises TilingError where the driver holds less than one head of it at once.
    """
    function = _loaded(problem, tiling, gpu.sm, device)
    if isinstance(tiling, StepTiling):
        return StepPlan(tiling, function)
    resident = function.resident(gpu.sms)
    blocks = 1 if isinstance(tiling, BlockTiling) else tiling.blocks
    if resident >= blocks:
        return Plan(problem, tiling, function, _groups(problem, tiling, gpu, resident))
    schedule, shape = schedule_of(tiling), function.shape
    raise TilingError(
        f"a head of D={problem.dims.D} of {problem.program.cell.name} ({problem.direction}, "
        f"{problem.dtype.name}) in {IN_WORDS[schedule]} needs {blocks} resident blocks of "
        f"{shape.threads} threads, {function.registers} registers per thread and "
        f"{shape.shared_bytes:,} bytes of shared memory, of which {gpu.name} holds {resident}"
    )


@lru_cache(maxsize=1024)
def untuned(problem: CudaProblem, gpu: Gpu) -> AnyTiling:
    """A pack's tiling or the latency model's; a launch per step where no schedule holds a head.

    Used where nothing was tuned, unless compiler or driver object. Raises TilingError where nothing
    fits a cell without a product.
    """
    problem = in_tiles(problem)
    first = next(_choices(problem, gpu), None)
    if first is None and not problem.products:
        choose(problem, gpu)  # which says what rules each schedule out
    return first or cuda_step.choose(problem, gpu)


def tuned(problem: CudaProblem, gpu: Gpu) -> Selected[AnyTiling] | None:
    """What tuning left, if it is one of the model's tilings for this GPU."""
    problem = in_tiles(problem)

    def fitting(config: Mapping[str, int]) -> AnyTiling:
        tiling = tiling_of(config)
        if not admits(problem, gpu, tiling):
            raise TilingError(f"{dict(config)} does not fit {gpu.name}")
        return tiling

    return remembered(problem_key(problem), gpu, problem.program.cell.name, fitting)


def problem_key(problem: CudaProblem) -> dict[str, int | str]:
    """What a tuned tiling is remembered under, of whichever schedule."""
    dims, program = in_tiles(problem).dims, problem.program
    # kernels that are written otherwise are others
    some = (
        BlockTiling(1, problem.tiles, 0), SpreadTiling(GRID, 8, problem.tiles, 1, 1, 1, 0),
        SpreadTiling(CLUSTER, 8, problem.tiles, 1, 1, 1, 0), StepTiling(WARP),
    )  # fmt: skip
    state = hashlib.sha256("".join(source_of(problem, tiling) for tiling in some).encode())
    for name, text in headers().items():
        state.update(name.encode() + b"\0" + text)
    return {
        "kernel": f"{program.cell.key} {problem.direction} cuda",
        "dtype": problem.dtype.name,
        "B": dims.B,
        "N": dims.N,
        "D": dims.D,
        "source": state.hexdigest()[:16],
    }


def _choices(problem: CudaProblem, gpu: Gpu) -> Iterator[Tiling]:
    """A pack's tiling; then of each schedule that is left the model's, the quickest first."""
    left = list(SCHEDULES)
    found = packs.lookup(CUDA, problem, gpu)
    if found is not None:  # nothing is solved
        yield found.tiling
        left.remove(schedule_of(found.tiling))
    left = [schedule for schedule in left if fits(problem, gpu, schedule)]
    while left:
        tiling = choose(problem, gpu, left)
        yield tiling
        left.remove(schedule_of(tiling))


def _groups(problem: CudaProblem, tiling: Tiling, gpu: Gpu, resident: int) -> int:
    """Groups of blocks in one launch; those of a grid wait for each other, so all are resident."""
    if isinstance(tiling, BlockTiling) or tiling.exchange != GRID:
        return MOST_ALONG_Y
    return min(groups(problem, tiling, gpu), resident // tiling.blocks)


def _loaded(problem: CudaProblem, tiling: AnyTiling, sm: int, device: torch.device) -> Function:
    """The kernel of a tiling on the current device, compiled and loaded once per source."""
    needed, schedule = predict(problem, tiling), schedule_of(tiling)
    cluster = tiling.blocks if isinstance(tiling, SpreadTiling) and schedule == CLUSTER else 1
    shape = Shape(needed.threads, needed.shared_bytes, cluster, schedule == GRID)
    source = source_of(problem, tiling)
    known = _functions.get((source, device))
    if known is None:
        name = f"{problem.program.cell.name}-{problem.direction}"
        known = _functions[source, device] = Function(cubin_of(name, source, sm), name, shape)
    return known
