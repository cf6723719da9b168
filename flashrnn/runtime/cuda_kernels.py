"""Which CUDA kernel serves a call: the tiling by the model, compiled and loaded once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autotune.gpu import Gpu
from flashrnn.dims import Dims
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.errors import BackendError, TilingError
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_cache import cubin_of
from flashrnn.runtime.cuda_driver import Argument, Function, Shape
from flashrnn.runtime.gpu_tensors import device_of, gpu_dtype_of, is_capturing, on_device
from flashrnn.tiling.cuda import ROWS, BlockTiling, CudaProblem
from flashrnn.tiling.cuda_choice import (
    IN_WORDS,
    SCHEDULES,
    choose,
    predict,
    schedule_of,
    source_of,
)
from flashrnn.tiling.cuda_latency import Tiling
from flashrnn.tiling.cuda_spread import exchange_bytes, groups

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


_plans: dict[object, Plan] = {}
_functions: dict[object, Function] = {}


def plan_for(cell: Cell, direction: str, like: torch.Tensor, dims: Dims) -> Plan:
    """The plan for these sizes, in the dtype and on the device of `like`; T takes no part.

    Raises TilingError where the device holds no tiling, BackendError where a kernel would have to
    be compiled while a CUDA graph is captured, and what `cubin_of` and `Function` raise.
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


def _planned(problem: CudaProblem, gpu: Gpu, device: torch.device) -> Plan:
    """The schedule with the shortest predicted time of those that the driver can hold."""
    left: tuple[str, ...] = SCHEDULES
    told: list[str] = []
    while left:
        try:
            tiling = choose(problem, gpu, left)
        except TilingError as error:
            told.append(str(error))
            break
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
        left = tuple(other for other in left if other != schedule)
    raise TilingError(f'{"; ".join(told)}; backend="triton" takes heads of any size')


def _groups(problem: CudaProblem, tiling: Tiling, gpu: Gpu, resident: int) -> int:
    """Groups of blocks in one launch; those of a grid wait for each other, so all are resident."""
    if isinstance(tiling, BlockTiling) or tiling.exchange != GRID:
        return MOST_ALONG_Y
    return min(groups(problem, tiling, gpu), resident // tiling.blocks)


def _loaded(problem: CudaProblem, tiling: Tiling, sm: int, device: torch.device) -> Function:
    """The kernel on the current device, compiled and loaded once per source and device."""
    source = source_of(problem, tiling)
    known = _functions.get((source, device))
    if known is None:
        name = f"{problem.program.cell.name}-{problem.direction}"
        needed, schedule = predict(problem, tiling), schedule_of(tiling)
        cluster = 1
        if not isinstance(tiling, BlockTiling) and schedule == CLUSTER:
            cluster = tiling.blocks
        shape = Shape(needed.threads, needed.shared_bytes, cluster, schedule == GRID)
        known = _functions[source, device] = Function(cubin_of(name, source, sm), name, shape)
    return known
