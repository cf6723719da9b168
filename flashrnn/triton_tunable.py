"""A Triton kernel of a cell as autotune sees it: to be configured, compiled, checked and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import Device
from autotune.gpu import Gpu
from autotune.space import Check, Compiled, Config, GpuRunner, Prediction
from flashrnn.dims import Dims
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE
from flashrnn.reference import reference
from flashrnn.runtime import triton_launch as launch
from flashrnn.runtime.arguments import of_gates, unit_weights
from flashrnn.runtime.gpu_tensors import saved_shape
from flashrnn.runtime.launch import empty_sequence
from flashrnn.runtime.triton_build import module_of
from flashrnn.runtime.triton_compile import compile_for
from flashrnn.runtime.triton_kernels import Plan, plan_for, problem_key, source_of, untuned
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
from flashrnn.tolerance import Comparison, compare, worst

if TYPE_CHECKING:
    from constrint import Model

Tensor = torch.Tensor
# Steps of a candidate's check.
CHECK_STEPS = 12


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
        return tiling.model(self.problem_, device, self.schedule)

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
        return _KernelRunner(self.problem_, self.tiling(config), "cuda")


def kernels_for(problems: Sequence[TritonProblem]) -> list[TritonKernel]:
    """The kernels of each problem, one per schedule."""
    return [TritonKernel(problem, s) for problem in problems for s in (FUSED, ALTERNATING)]


class _KernelRunner:
    """Inputs and results of one candidate."""

    def __init__(self, problem: TritonProblem, chosen: Tiling, device: str) -> None:
        source = source_of(problem, chosen, interpreted=device == "cpu")
        plan = Plan(chosen, module_of(f"{problem.program.cell.name}-{problem.direction}", source))
        self._steps = min(problem.dims.T, CHECK_STEPS)
        self._make: Callable[[int], _Arguments] = lambda T: _Arguments(plan, problem, T, device)
        self._full = self._make(problem.dims.T)

    def run(self) -> None:
        self._full.call()

    def check(self) -> Check:
        found = worst(self._make(self._steps).compare())
        return Check(found.error, found.bound, f"error of {found.what} against float64")

    def results(self) -> bytes:
        self._full.call()
        return b"".join(_bits(x) for x in self._full.got().values())


class _Arguments:
    """Random inputs of a cell for T steps, and NaN where results will be written."""

    def __init__(self, plan: Plan, problem: TritonProblem, T: int, device: str) -> None:
        cell, dims = problem.program.cell, problem.dims
        self._plan, self._direction, self.cell = plan, problem.direction, cell
        B, N, D = dims.B, dims.N, dims.D
        S, K, G = len(cell.states), len(cell.parameters), len(cell.gates)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return x.to(device, problem.dtype.torch)

        recurrent = (len(cell.recurrent), N, D) + ((D,) if cell.recurrence == DENSE else ())
        self.wx = normal(B, T, len(cell.input), N, D)
        self.r = normal(*recurrent, scale=D**-0.5)
        self.bias = normal(G, N, D)
        self.parameters = normal(K, N, D) if K else None
        self.initial = normal(S, B, 1, N, D)
        self.weights = unit_weights(cell, self.r, self.parameters)
        self.states = empty_sequence(self.wx, (S,), (N, D)).fill_(torch.nan)
        self.last = torch.full_like(self.initial, torch.nan)
        self.saved: Tensor | None = None
        if self._direction != INFERENCE:
            shape = saved_shape(cell, self.states)
            self.saved = self.wx.new_full(shape, torch.nan)
        self.d_states, self.d_last = normal(S, B, T, N, D), normal(S, B, 1, N, D)
        self.d_gates = empty_sequence(self.wx, (), (G, N, D)).fill_(torch.nan)
        self.d_initial = torch.full_like(self.initial, torch.nan)
        if self._direction == BACKWARD:  # what it reads of a forward pass, by the model's choice
            self._forward(plan_for(cell, TRAINING, self.wx, Dims(B, T, N, D)))

    def call(self) -> None:
        """One call as the library makes it."""
        if self._direction != BACKWARD:
            self._forward(self._plan)
            return
        assert self.saved is not None
        launch.backward(
            self._plan, self.cell, self.r, self.weights, self.initial, self.states, self.saved,
            self.d_states, self.d_last, self.d_gates, self.d_initial, None, NONE,
        )  # fmt: skip

    def _forward(self, plan: Plan) -> None:
        launch.forward(
            plan, self.cell, self.wx, self.r, self.bias, self.weights, self.initial, self.states,
            self.last, self.saved, None, NONE,
        )  # fmt: skip

    def compare(self) -> list[Comparison]:
        """Results against the float64 reference, with eager's own error as the measure."""
        self.call()
        exact, eager = self._expected(torch.float64), self._expected(self.wx.dtype)
        return [compare(name, got, exact[name], eager[name]) for name, got in self.got().items()]

    def got(self) -> dict[str, Tensor]:
        """The results of the last call."""
        if self._direction != BACKWARD:
            return {"states": self.states, "last": self.last}
        d_wx = of_gates(self.d_gates, self.cell.gates, self.cell.input)
        return {"d_Wx": d_wx, "d_initial": self.d_initial}

    def _expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        wx, s = (x.to(dtype).requires_grad_() for x in (self.wx, self.initial))
        p = None if self.parameters is None else self.parameters.to(dtype)
        results = reference(wx, self.r.to(dtype), self.bias.to(dtype), s, self.cell, p)
        if self._direction != BACKWARD:
            return {"states": results[0].detach(), "last": results[1].detach()}
        cotangents = (self.d_states.to(dtype), self.d_last.to(dtype))
        d_wx, d_s = torch.autograd.grad(results, (wx, s), cotangents)
        return {"d_Wx": d_wx, "d_initial": d_s}


def _bits(x: Tensor) -> bytes:
    flat = x.detach().contiguous().flatten().view(torch.uint8)
    return bytes(flat.cpu().numpy().tobytes())
