"""A CUDA kernel of a cell as autotune sees it: to be configured, compiled, checked and timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from autotune.device import Device
from autotune.gpu import Gpu
from autotune.space import Compiled, Config, GpuRunner, Prediction
from flashrnn.dtypes import FLOAT32
from flashrnn.gpu_tunable import KernelRunner
from flashrnn.runtime.cuda_compile import compile_for
from flashrnn.runtime.cuda_kernels import plan_with, problem_key, untuned
from flashrnn.runtime.cuda_recurrence import BACKEND
from flashrnn.tiling import cuda_choice as tiling
from flashrnn.tiling.cuda import ROWS, BlockTiling, CudaProblem, in_tiles
from flashrnn.tiling.cuda_choice import IN_WORDS, SCHEDULES, schedule_of
from flashrnn.tiling.cuda_latency import AnyTiling, seconds
from flashrnn.tiling.cuda_step import STEP, StepTiling

if TYPE_CHECKING:
    from constrint import Model


@dataclass(frozen=True)
class CudaKernel:
    """One direction of a cell by one schedule on a GPU, as autotune sees it.

    schedule: one of cuda_choice.SCHEDULES, or STEP.
    """

    problem_: CudaProblem
    schedule: str

    @property
    def name(self) -> str:
        return f"{self.problem_.program.cell.name} {self.problem_.direction} cuda, {self.schedule}"

    def problem(self) -> dict[str, int | str]:
        return problem_key(self.problem_)

    def model(self, device: Gpu) -> Model:
        return tiling.model(in_tiles(self.problem_), device, self.schedule)

    def cost(self, config: Config, device: Gpu) -> float:
        return seconds(in_tiles(self.problem_), self.tiling(config), device)

    def default(self, device: Gpu) -> dict[str, int] | None:
        """What is used where nothing was tuned, if it is of this schedule."""
        used = untuned(self.problem_, device)
        return used.as_config() if schedule_of(used) == self.schedule else None

    def tiling(self, config: Config) -> AnyTiling:
        """The tiling that a configuration means."""
        return tiling.tiling_of(config)

    def describe(self, config: Config) -> str:
        return described(self.problem_, self.tiling(config))

    def predict(self, config: Config, device: Gpu) -> Prediction:
        return tiling.predict(self.problem_, self.tiling(config))

    def compile(self, config: Config, device: Gpu) -> Compiled:
        return compile_for(self.problem_, self.tiling(config), device.sm)

    def build(self, config: Config) -> None:
        self.compile(config, Device.current("cuda"))

    def load(self, config: Config) -> GpuRunner:
        """As GpuTunable; raises TilingError where the driver does not hold a head of it."""
        gpu = Device.current("cuda")
        return runner_of(self.problem_, self.tiling(config), gpu, "cuda")

    @property
    def steps(self) -> int:
        """As autotune's Stepped."""
        return self.problem_.dims.T


def kernels_for(problems: Sequence[CudaProblem]) -> list[CudaKernel]:
    """The kernels of each problem, one per schedule; a launch per step for one with a product."""

    def schedules(problem: CudaProblem) -> Iterator[str]:
        yield from SCHEDULES
        if problem.products:
            yield STEP

    return [CudaKernel(problem, s) for problem in problems for s in schedules(problem)]


def described(problem: CudaProblem, chosen: AnyTiling) -> str:
    """A tiling in one line for people."""
    schedule = schedule_of(chosen)
    if isinstance(chosen, StepTiling):
        return f"{IN_WORDS[schedule]}, {chosen.threads} threads per block"
    if isinstance(chosen, BlockTiling):
        words = f"{IN_WORDS[schedule]}, {chosen.warps} warps"
        words += f" × {chosen.tiles_per_warp} tiles of 8 units"
        deep = problem.k_tiles
    else:
        words = f"a {schedule} of {chosen.blocks} blocks, {chosen.units} units each"
        words += f", {chosen.warps_n} × {chosen.warps_k} warps"
        if 1 < chosen.warps_k != chosen.sum_parts:
            words += " that add in turn"
        if chosen.tiles_in_flight > 1:
            words += f", {chosen.tiles_in_flight} tiles of {ROWS} rows in flight"
        deep = -(-problem.k_tiles // chosen.warps_k)
    if problem.products:
        words += f", {chosen.k_tiles_in_registers}/{deep} k tiles of R in registers"
    return words


def runner_of(problem: CudaProblem, chosen: AnyTiling, gpu: Gpu, device: str) -> KernelRunner:
    """Of one candidate on the device that tensors of `device` go to, which is the `gpu`."""
    there = torch.empty(0, device=device).device
    one_step = in_tiles(replace(problem, dims=replace(problem.dims, T=1)))
    plan = plan_with(one_step, chosen, gpu, there)
    tf32 = problem.dtype == FLOAT32 and problem.products > 0
    return KernelRunner(BACKEND, plan, problem, device, tf32=tf32)
