"""What tuning does with a kernel of a cell on a GPU, whichever back end it is of: random inputs,
results that were NaN before, the comparison with the float64 reference."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from autotune.space import Check
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE
from flashrnn.passes.lower import Program
from flashrnn.reference import reference
from flashrnn.runtime.arguments import of_gates, unit_weights
from flashrnn.runtime.gpu_recurrence import Backend
from flashrnn.runtime.gpu_tensors import saved_shape
from flashrnn.runtime.launch import empty_sequence
from flashrnn.tolerance import Comparison, compare, worst

Tensor = torch.Tensor
# Steps of a candidate's check.
CHECK_STEPS = 12


class GpuProblem(Protocol):
    """What the problems of both back ends have."""

    @property
    def program(self) -> Program: ...
    @property
    def direction(self) -> str: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def dims(self) -> Dims: ...


class KernelRunner:
    """Inputs and results of one candidate; a GpuRunner."""

    def __init__(
        self, backend: Backend, plan: Any, problem: GpuProblem, device: str, *, tf32: bool
    ) -> None:
        """plan: what the back end launches. tf32: whether products round to it."""
        self._backend, self._plan, self._problem = backend, plan, problem
        self._device, self._tf32 = device, tf32
        self._full = self._of(problem.dims.T)

    def _of(self, T: int) -> _Arguments:
        return _Arguments(self._backend, self._plan, self._problem, T, self._device)

    def run(self) -> None:
        self._full.call()

    def check(self) -> Check:
        small = self._of(min(self._problem.dims.T, CHECK_STEPS))
        found = worst(small.compare(tf32=self._tf32))
        return Check(found.error, found.bound, f"error of {found.what} against float64")

    def results(self) -> bytes:
        self._full.call()
        return b"".join(_bits(x) for x in self._full.got().values())


class _Arguments:
    """Random inputs of a cell for T steps, and NaN where results will be written."""

    def __init__(
        self, backend: Backend, plan: Any, problem: GpuProblem, T: int, device: str
    ) -> None:
        cell, dims = problem.program.cell, problem.dims
        self._launch, self._plan = backend.launch, plan
        self._direction, self.cell = problem.direction, cell
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
            self._forward(backend.plan_for(cell, TRAINING, self.wx, Dims(B, T, N, D)))

    def call(self) -> None:
        """One call as the library makes it."""
        if self._direction != BACKWARD:
            self._forward(self._plan)
            return
        assert self.saved is not None
        self._launch.backward(
            self._plan, self.cell, self.r, self.weights, self.initial, self.states, self.saved,
            self.d_states, self.d_last, self.d_gates, self.d_initial, None, NONE,
        )  # fmt: skip

    def _forward(self, plan: Any) -> None:
        self._launch.forward(
            plan, self.cell, self.wx, self.r, self.bias, self.weights, self.initial, self.states,
            self.last, self.saved, None, NONE,
        )  # fmt: skip

    def compare(self, *, tf32: bool) -> list[Comparison]:
        """Results against the float64 reference, with eager's own error as the measure."""
        self.call()
        exact, eager = self._expected(torch.float64), self._expected(self.wx.dtype)
        return [
            compare(name, got, exact[name], eager[name], tf32=tf32)
            for name, got in self.got().items()
        ]

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
