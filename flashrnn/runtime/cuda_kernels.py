"""Which CUDA kernel serves a call: its tiling by a pack or the model, compiled and loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from autotune.gpu import Gpu
from flashrnn import packs
from flashrnn.dims import Dims
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.errors import BackendError, TilingError
from flashrnn.ir.cell import Cell
from flashrnn.packs import CUDA
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_cache import cubin_of
from flashrnn.runtime.cuda_driver import Argument, Function, Shape
from flashrnn.runtime.gpu_tensors import device_of, gpu_dtype_of, is_capturing, on_device
from flashrnn.tiling import cuda_step
from flashrnn.tiling.cuda import ROWS, BlockTiling, CudaProblem
from flashrnn.tiling.cuda_choice import (
    IN_WORDS,
    SCHEDULES,
    choose,
    fits,
    predict,
    schedule_of,
    source_of,
)
from flashrnn.tiling.cuda_latency import Tiling
from flashrnn.tiling.cuda_spread import exchange_bytes, groups
from flashrnn.tiling.cuda_step import StepTiling

# Blocks that a grid can have along y.
MOST_ALONG_Y = 65535
# Per group of blocks: `counter_spacing` in csrc/cuda/exchange.hpp.
COUNTER_WORDS = 32


@dataclass(frozen=True)
class Plan:
    """A loaded kernel and its tiling. groups: of blocks that a launch may have."""

    problem: CudaProblem
    tiling: Tiling
    function: Function
    groups: int

    def launch(self, dims: Dims, like: torch.Tensor, arguments: tuple[Argument, ...]) -> None:
        """Run it with a schedule's Arguments, but for those of the exchange.

        One launch; of a grid of blocks as many as it takes for all heads and tiles of rows, each
        with counters of its own.
        """
        rows = -(-dims.B // ROWS)
        if isinstance(self.tiling, BlockTiling):
            self.function.launch((rows, dims.N), arguments)
            return
        items = rows * dims.N
        most = min(self.groups, items)
        exchange: torch.Tensor | None = None
        if self.tiling.exchange == GRID:
            size = most * exchange_bytes(self.problem, self.tiling)
            exchange = like.new_zeros(size, dtype=torch.uint8)
        for first in range(0, items, most):
            count = min(most, items - first)
            arrived: torch.Tensor | None = None
            if exchange is not None:
                arrived = like.new_zeros((count, COUNTER_WORDS), dtype=torch.int32)
            grid = self.tiling.blocks, count
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


_plans: dict[object, Plan | StepPlan] = {}
_functions: dict[object, Function] = {}


def plan_for(cell: Cell, direction: str, like: torch.Tensor, dims: Dims) -> Plan | StepPlan:
    """The plan for these sizes, in the dtype and on the device of `like`; T takes no part.

    Raises TilingError where a cell without a product has no tiling, BackendError where a kernel
    would have to be compiled while a CUDA graph is captured, and what `cubin_of` and `Function`
    raise.
    """
    tiles = -(-dims.B // ROWS)
    key = cell.key, direction, like.dtype, tiles, dims.N, dims.D, like.device
    known = _plans.get(key)
    if known is None:
        if is_capturing(like):
            raise BackendError(
                f"the CUDA kernel of {cell.name} ({direction}) for {tiles} tiles of {ROWS} rows, "
                f"N={dims.N}, D={dims.D} is not loaded, which cannot be done while a CUDA graph is "
                "captured; run the call once before the capture"
            )
        dtype = gpu_dtype_of(like.dtype, backend="cuda")
        sizes = replace(dims, B=tiles * ROWS, T=1)
        problem = CudaProblem(lower(cell), direction, dtype, sizes)
        with on_device(like):
            known = _plans[key] = _planned(problem, device_of(like), like.device)
    return known


def _planned(problem: CudaProblem, gpu: Gpu, device: torch.device) -> Plan | StepPlan:
    """The first of the choices that the driver can hold.

    Where there is none, a launch per step, if the cell has a product.
    """
    told: list[str] = []
    for tiling in _choices(problem, gpu):
        function = _loaded(problem, tiling, gpu.sm, device)
        resident = function.resident(gpu.sms)
        blocks = 1 if isinstance(tiling, BlockTiling) else tiling.blocks
        if resident >= blocks:
            return Plan(problem, tiling, function, _groups(problem, tiling, gpu, resident))
        schedule, shape = schedule_of(tiling), function.shape
        told.append(
            f"a head of D={problem.dims.D} of {problem.program.cell.name} ({problem.direction}, "
            f"{problem.dtype.name}) in {IN_WORDS[schedule]} needs {blocks} resident blocks of "
            f"{shape.threads} threads, {function.registers} registers per thread and "
            f"{shape.shared_bytes:,} bytes of shared memory, of which {gpu.name} holds {resident}"
        )
    if not problem.products:
        if not told:
            choose(problem, gpu)  # which says what rules each schedule out
        raise TilingError("; ".join(told))
    step = cuda_step.choose(problem, gpu)
    source, needed = cuda_step.source_of(problem, step), cuda_step.predict(step)
    shape = Shape(needed.threads, needed.shared_bytes)
    return StepPlan(step, _function(problem, source, shape, gpu.sm, device))


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


def _loaded(problem: CudaProblem, tiling: Tiling, sm: int, device: torch.device) -> Function:
    """The kernel of a tiling on the current device."""
    needed, schedule = predict(problem, tiling), schedule_of(tiling)
    cluster = 1
    if not isinstance(tiling, BlockTiling) and schedule == CLUSTER:
        cluster = tiling.blocks
    shape = Shape(needed.threads, needed.shared_bytes, cluster, schedule == GRID)
    return _function(problem, source_of(problem, tiling), shape, sm, device)


def _function(
    problem: CudaProblem, source: str, shape: Shape, sm: int, device: torch.device
) -> Function:
    """A kernel on the current device, compiled and loaded once per source and device."""
    known = _functions.get((source, device))
    if known is None:
        name = f"{problem.program.cell.name}-{problem.direction}"
        known = _functions[source, device] = Function(cubin_of(name, source, sm), name, shape)
    return known
