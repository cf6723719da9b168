"""What the entry point hands to autotune: a cell's forward and backward kernels, to be tuned."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import Device
from autotune.space import Check, Comparison, Config, Options, Runner, Tunable
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BY_NAME
from flashrnn.emit.cpp import BACKWARD, FORWARD, LAYER
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.passes.lower import lower
from flashrnn.reference import reference
from flashrnn.runtime import kernels, launch
from flashrnn.runtime.arguments import of_gates, unit_weights
from flashrnn.runtime.layer import layer
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

    def model(self, device: Device) -> Model:
        return cpu.model(self.problem_, device)

    def cost(self, config: Config, device: Device) -> float:
        return cpu.cost(config, self.problem_, device)

    def default(self, device: Device) -> dict[str, int]:
        return cpu.default(self.problem_, device).as_config()

    def build(self, config: Config) -> None:
        kernels.compiled(self.problem_, CpuTiling.of_config(config), Device.current())

    def load(self, config: Config) -> Runner:
        return _KernelRunner(self.problem_, CpuTiling.of_config(config))

    def describe(self, config: Config) -> str:
        t = CpuTiling.of_config(config)
        return (
            f"{t.b_per_register} rows × {t.d_per_register} units in registers, "
            f"{t.b_per_core} rows per core"
        )


class _KernelRunner:
    """Inputs and results of one candidate."""

    def __init__(self, problem: CpuProblem, tiling: CpuTiling) -> None:
        self._problem = problem
        library = kernels.load(problem, tiling, Device.current())
        self._plan = kernels.Plan(problem.direction, library, tiling, tuned=True)
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
        self.w: Tensor | None = None
        if self.direction == LAYER:  # an input as wide as all heads
            self.wx = normal(T, B, N * D).transpose(0, 1)
            self.w = normal(len(cell.input), N, D, N * D, scale=(N * D) ** -0.5)
        else:
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
            self._forward(launch.kernel_for(cell, FORWARD, self.wx, small))
        self._new_kernel = lambda: launch.Kernel(plan, self.wx, small)

    def call(self) -> None:
        """One call as the library makes it: the weights are packed each time."""
        kernel = self._new_kernel()
        if self.direction != BACKWARD:
            self._forward(kernel)
        else:
            kernel.backward(
                self.r, self.weights, self.initial, self.states, self.saved, self.d_states,
                self.d_last, self.d_gates, self.d_initial, self.d_weights,
            )  # fmt: skip

    def _forward(self, kernel: launch.Kernel) -> None:
        kernel.forward(
            self.wx, self.r, self.bias, self.weights, self.initial, self.states, self.last,
            self.saved, self.w,
        )  # fmt: skip

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
        if self.w is not None:
            wx = torch.einsum("bti,gndi->btgnd", wx, self.w.to(dtype))
        states, last = reference(wx, r, b, s, self.cell, p)
        if self.direction != BACKWARD:
            return {"states": states.detach(), "last": last.detach()}
        results, cotangents = (states, last), (self.d_states.to(dtype), self.d_last.to(dtype))
        d_wx, d_b, d_s = torch.autograd.grad(results, (wx, b, s), cotangents)
        return {"d_Wx": d_wx, "d_b": d_b, "d_initial": d_s}


@dataclass(frozen=True)
class CellFamily:
    """A cell's kernels with their options on the command line.

    peers: for the parsed sizes, what to time the tuned layer against.
    """

    cell: Cell
    peers: Callable[[Dims, torch.dtype], list[tuple[str, Callable[[Tensor], Tensor]]]]

    @property
    def name(self) -> str:
        return self.cell.name

    def add_arguments(self, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument("--batch", type=_positive, default=16, help="B (16)")
        parser.add_argument("--time", type=_positive, default=256, help="T (256)")
        parser.add_argument("--heads", type=_positive, default=1, help="N (1)")
        parser.add_argument("--head-dim", type=_positive, default=64, help="D (64)")
        parser.add_argument("--dtype", choices=sorted(BY_NAME), default="float32")

    def tunables(self, options: Options) -> list[Tunable]:
        dims, dtype, threads = _dims(options), BY_NAME[str(options["dtype"])], options["threads"]
        directions = (FORWARD, LAYER, BACKWARD) if cpu.owns_input(dims) else (FORWARD, BACKWARD)
        return [
            CpuKernel(CpuProblem(lower(self.cell), direction, dtype, dims, int(threads or 1)))
            for direction in directions
        ]

    def comparisons(self, options: Options) -> list[Comparison]:
        dims, dtype = _dims(options), BY_NAME[str(options["dtype"])].torch
        size = dims.hidden_size
        x = torch.randn(dims.T, dims.B, size, dtype=dtype, requires_grad=True)
        ours = fused_layer(self.cell, dims, dtype)
        d_y = torch.randn(dims.T, dims.B, size, dtype=dtype)
        found = []
        for label, wrap in (("forward", _inference), ("forward and backward", _training)):
            for peer, theirs in self.peers(dims, dtype):
                mine, other = wrap(ours, x, d_y), wrap(theirs, x, d_y)
                found.append(Comparison(f"{label}, input product included", mine, peer, other))
        return found


def fused_layer(cell: Cell, dims: Dims, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A layer of the cell with random weights: x [T, B, N * D] -> h [T, B, N * D]."""
    size, scale = dims.hidden_size, dims.hidden_size**-0.5
    shapes = (
        (len(cell.input), dims.N, dims.D, size),
        (len(cell.recurrent), dims.N, dims.D, dims.D),
        (len(cell.gates), dims.N, dims.D),
    )
    w, r, b = (torch.randn(s, dtype=dtype).mul_(scale).requires_grad_() for s in shapes)

    def run(x: Tensor) -> Tensor:
        h, _ = layer(cell, x.transpose(0, 1), w, r, b, None, None)
        return h.transpose(0, 1).flatten(2)

    return run


def _lstm_peers(dims: Dims, dtype: torch.dtype) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """torch.nn.LSTM: one per head, which computes the same; and one as wide as all heads."""
    size = dims.hidden_size
    whole = torch.nn.LSTM(size, size, dtype=dtype)
    if dims.N == 1:
        return [("torch.nn.LSTM", lambda x: whole(x)[0])]
    heads = torch.nn.ModuleList(torch.nn.LSTM(size, dims.D, dtype=dtype) for _ in range(dims.N))
    return [
        (f"{dims.N} × torch.nn.LSTM({dims.D})", lambda x: torch.cat([m(x)[0] for m in heads], -1)),
        (f"torch.nn.LSTM({size}), one head", lambda x: whole(x)[0]),
    ]


def _inference(run: Callable[[Tensor], Tensor], x: Tensor, _d_y: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            run(x)

    return call


def _training(run: Callable[[Tensor], Tensor], x: Tensor, d_y: Tensor) -> Callable[[], None]:
    def call() -> None:
        run(x).backward(d_y)

    return call


def _dims(options: Options) -> Dims:
    sizes = (int(options[name] or 1) for name in ("batch", "time", "heads", "head_dim"))
    return Dims(*sizes)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def lstm_family() -> CellFamily:
    """The entry point of `autotune run lstm`."""
    return CellFamily(lstm, _lstm_peers)
