"""A Triton kernel of a cell as autotune sees it: to be configured, compiled, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.device import Device
from autotune.gpu import Gpu
from autotune.space import Compiled, Config, GpuRunner, Prediction
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.triton import TF32
from flashrnn.gpu_tunable import KernelRunner
from flashrnn.runtime.triton_build import module_of
from flashrnn.runtime.triton_compile import compile_for
from flashrnn.runtime.triton_kernels import Plan, problem_key, source_of, untuned
from flashrnn.runtime.triton_recurrence import BACKEND
from flashrnn.tiling import triton as tiling
from flashrnn.tiling.triton import (
    ALTERNATING,
    FUSED,
    AlternatingTiling,
    FusedTiling,
    Tiling,
    TritonProblem,
    schedule_of,
    tiling_of,
)

if TYPE_CHECKING:
    from constrint import Model


@dataclass(frozen=True)
class TritonKernel:
    """One direction of a cell by one schedule on a GPU, as autotune sees it."""

    problem_: TritonProblem
    schedule: str

    @property
    def name(self) -> str:
        return f"{self.problem_.program.cell.name} {self.problem_.direction}, {self.schedule}"

    def problem(self) -> dict[str, int | str]:
        return problem_key(self.problem_)

    def model(self, device: Gpu) -> Model:
        if self.schedule == FUSED:
            return tiling.fused_model(self.problem_, device)
        return tiling.alternating_model(self.problem_, device)

    def cost(self, config: Config, device: Gpu) -> float:
        return tiling.cost(self.problem_, self.tiling(config), device)

    def default(self, device: Gpu) -> dict[str, int] | None:
        """What is used where nothing was tuned, if it is of this schedule."""
        used = untuned(self.problem_, device).tiling
        return used.as_config() if schedule_of(used) == self.schedule else None

    def tiling(self, config: Config) -> Tiling:
        """The tiling that a configuration means."""
        return tiling_of(config)

    def describe(self, config: Config) -> str:
        t = self.tiling(config)
        words = f"{t.b_per_program} rows × {t.d_per_program} units, {t.num_warps} warps"
        if isinstance(t, FusedTiling) and self.problem_.products:
            words += f", R of {t.gates_in_registers}/{self.problem_.products} gates in registers"
        elif isinstance(t, AlternatingTiling):
            words += ", a launch per step"
        return words

    def predict(self, config: Config, device: Gpu) -> Prediction:
        return tiling.predict(self.problem_, self.tiling(config))

    def compile(self, config: Config, device: Gpu) -> Compiled:
        return compile_for(self.problem_, self.tiling(config), device.sm)

    def build(self, config: Config) -> None:
        self.compile(config, Device.current("cuda"))

    def load(self, config: Config) -> GpuRunner:
        return runner_of(self.problem_, self.tiling(config), "cuda")

    @property
    def steps(self) -> int:
        """As autotune's Stepped."""
        return self.problem_.dims.T


def kernels_for(problems: Sequence[TritonProblem]) -> list[TritonKernel]:
    """The kernels of each problem, one per schedule."""
    return [TritonKernel(problem, s) for problem in problems for s in (FUSED, ALTERNATING)]


def runner_of(problem: TritonProblem, chosen: Tiling, device: str) -> KernelRunner:
    """Of one candidate; device: "cuda", or "cpu" where Triton's interpreter runs it."""
    source = source_of(problem, chosen, interpreted=device == "cpu")
    plan = Plan(chosen, module_of(f"{problem.program.cell.name}-{problem.direction}", source))
    tf32 = problem.precision == TF32 and problem.dtype == FLOAT32
    return KernelRunner(BACKEND, plan, problem, device, tf32=tf32)
