"""One kernel of a cell as autotune sees it: to be configured, built, checked and timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import Cpu, Device
from autotune.space import Check, Config, Runner
from flashrnn.dims import Dims
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE
from flashrnn.passes.lower import lower
from flashrnn.reference import reference
from flashrnn.runtime import kernels, launch
from flashrnn.runtime.arguments import of_gates, unit_weights
from flashrnn.tiling import cpu
from flashrnn.tiling.cpu import CpuProblem, CpuTiling
from flashrnn.tolerance import Comparison as Measured
from flashrnn.tolerance import compare, worst

if TYPE_CHECKING:
    from constrint import Model

Tensor = torch.Tensor

# Steps of the candidate's check: the float64 reference takes a second, not a minute.
CHECK_STEPS = 12


@dataclass(frozen=True)
class CpuKernel:
    """One direction of a cell on a CPU, as autotune sees it."""

    problem_: CpuProblem

    @property
    def name(self) -> str:
        return f"{self.problem_.program.cell.name} {self.problem_.direction}"

    def problem(self) -> dict[str, int | str]:
        return kernels.problem_key(self.problem_)

    def model(self, device: Cpu) -> Model:
        return cpu.model(self.problem_, device)

    def cost(self, config: Config, device: Cpu) -> float:
        return cpu.cost(config, self.problem_, device)

    def default(self, device: Cpu) -> dict[str, int]:
        return cpu.default(self.problem_, device).as_config()

    def build(self, config: Config) -> None:
        kernels.compiled(self.problem_, CpuTiling.of_config(config), Device.current())

    def load(self, config: Config) -> Runner:
        return _KernelRunner(self.problem_, CpuTiling.of_config(config))

    def describe(self, config: Config) -> str:
        t = CpuTiling.of_config(config)
        shared = f", units shared by {t.cores_d} cores" if t.cores_d > 1 else ""
        return (
            f"{t.b_per_register} rows × {t.d_per_register} units in registers, "
            f"{t.b_per_core} rows per core{shared}"
        )


class _KernelRunner:
    """Inputs and results of one candidate."""

    def __init__(self, problem: CpuProblem, tiling: CpuTiling) -> None:
        self._problem = problem
        library = kernels.load(problem, tiling, Device.current())
        self._plan = kernels.Plan(
            problem.program.cell, problem.direction, library, tiling, tuned=True
        )
        self._full = _Arguments(self._plan, problem, problem.dims.T)

    def run(self) -> None:
        self._full.call()

    def check(self) -> Check:
        small = _Arguments(self._plan, self._problem, min(self._problem.dims.T, CHECK_STEPS))
        found = worst(small.compare())
        return Check(found.error, found.bound, f"error of {found.what} against float64")


class _Arguments:
    """Random inputs of a cell for T steps, and NaN where results will be written."""

    def __init__(self, plan: kernels.Plan, problem: CpuProblem, T: int) -> None:
        dims, cell = problem.dims, problem.program.cell
        self.cell, self.direction = cell, problem.direction
        B, N, D = dims.B, dims.N, dims.D
        S, K = len(cell.states), len(cell.parameters)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return x.to(problem.dtype.torch)

        def poisoned(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=problem.dtype.torch)

        recurrent_shape = (len(cell.recurrent), N, D) + ((D,) if cell.recurrence == DENSE else ())
        self.wx = normal(T, B, len(cell.input), N, D).transpose(0, 1)
        self.r = normal(*recurrent_shape, scale=D**-0.5)
        self.bias = normal(len(cell.gates), N, D)
        self.parameters = normal(K, N, D) if K else None
        self.initial = normal(S, B, 1, N, D)
        self.weights = unit_weights(cell, self.r, self.parameters)
        self.states = poisoned(S, T, B, N, D).transpose(1, 2)
        self.last = poisoned(S, B, 1, N, D)
        small = Dims(B, T, N, D)
        self.saved = poisoned(*launch.saved_shape(cell, small, problem.dtype))
        self.d_states = normal(S, T, B, N, D).transpose(1, 2)
        self.d_last = normal(S, B, 1, N, D)
        self.d_gates = poisoned(T, B, len(cell.gates), N, D).transpose(0, 1)
        self.d_initial = poisoned(S, B, 1, N, D)
        self.d_weights = poisoned(B, len(lower(cell).weights), N, D)
        if self.direction == BACKWARD:  # what it reads of a forward pass, from whichever kernel
            self._forward(launch.kernel_for(cell, FORWARD, self.wx.dtype, B, T, N, D))
        self._kernel = launch.Kernel(plan, problem.dtype, small, problem.threads)

    def call(self) -> None:
        """One call as the library makes it: the weights are packed each time."""
        if self.direction != BACKWARD:
            self._forward(self._kernel)
        else:
            self._kernel.run(self._kernel.backward(
                self.r, self.weights, self.initial, self.states, self.saved, self.d_states,
                self.d_last, self.d_gates, self.d_initial, self.d_weights, None, NONE,
            ))  # fmt: skip

    def _forward(self, kernel: launch.Kernel) -> None:
        kernel.run(kernel.forward(
            self.wx, self.r, self.bias, self.weights, self.initial, self.states, self.last,
            self.saved, None, NONE,
        ))  # fmt: skip

    def compare(self) -> list[Measured]:
        """Results against the float64 reference, with eager's own error as the measure."""
        self.call()
        exact, eager = self._expected(torch.float64), self._expected(self.wx.dtype)
        return [compare(name, got, exact[name], eager[name]) for name, got in self._got().items()]

    def _got(self) -> dict[str, Tensor]:
        if self.direction != BACKWARD:
            return {"states": self.states, "last": self.last}
        d_wx = of_gates(self.d_gates, self.cell.gates, self.cell.input)
        return {"d_Wx": d_wx, "d_b": self.d_gates.sum((0, 1)), "d_initial": self.d_initial}

    def _expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        wx, r, b, s = (
            x.to(dtype).requires_grad_() for x in (self.wx, self.r, self.bias, self.initial)
        )
        p = None if self.parameters is None else self.parameters.to(dtype)
        states, last = reference(wx, r, b, s, self.cell, p)
        if self.direction != BACKWARD:
            return {"states": states.detach(), "last": last.detach()}
        results, cotangents = (states, last), (self.d_states.to(dtype), self.d_last.to(dtype))
        d_wx, d_b, d_s = torch.autograd.grad(results, (wx, b, s), cotangents)
        return {"d_Wx": d_wx, "d_b": d_b, "d_initial": d_s}
