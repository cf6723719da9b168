"""Scan attention's kernels for `autotune run scan-attention`, and the peers they are timed with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import Cpu
from autotune.gpu import Gpu
from autotune.space import Check, Comparison, Config, Options, Runner, Tunable
from flashrnn.attention.scan import scan_attention
from flashrnn.attention.triton_tunable import TritonScanKernel
from flashrnn.dtypes import GPU_BY_NAME, SCANNED
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.runtime import scan_attention_kernels as kernels
from flashrnn.runtime import scan_launch
from flashrnn.runtime.triton_scan import FINISH, rounded
from flashrnn.scan_reference import ScanState
from flashrnn.scan_reference import attention_reference as reference
from flashrnn.tiling import scan
from flashrnn.tiling.scan import ScanProblem, ScanTiling
from flashrnn.tiling.triton_scan import TritonScanProblem
from flashrnn.tolerance import Comparison as Measured
from flashrnn.tolerance import compare, worst

if TYPE_CHECKING:
    from constrint import Model

Tensor = torch.Tensor
Call = Callable[[Tensor, Tensor], Tensor]

# Steps of a candidate's check against the reference, which is quadratic.
CHECK_STEPS = 200


@dataclass(frozen=True)
class ScanKernel:
    """One direction of scan attention on a CPU, as autotune sees it.

    sequences: of the call that is timed; the problem rounds it as `plan_for` does.
    """

    problem_: ScanProblem
    sequences: int
    T: int

    @property
    def name(self) -> str:
        return self.problem_.name

    def problem(self) -> dict[str, int | str]:
        return scan_launch.problem_key(self.problem_)

    def model(self, device: Cpu) -> Model:
        return scan.model(self.problem_, device)

    def cost(self, config: Config, device: Cpu) -> float:
        return scan.cost(config, self.problem_, device)

    def default(self, device: Cpu) -> dict[str, int]:
        return scan.default(self.problem_, device).as_config()

    def build(self, config: Config) -> None:
        scan_launch.compiled(self.problem_, ScanTiling.of_config(config))

    def load(self, config: Config) -> Runner:
        return _Runner(self, ScanTiling.of_config(config))

    def describe(self, config: Config) -> str:
        t = ScanTiling.of_config(config)
        stores = "past the caches" if t.streaming else "through the caches"
        loads = ", loads ahead" if t.fetch_ahead else ""
        return (
            f"panels of {t.heads_per_panel} × {t.vectors_per_panel} vectors, "
            f"{t.columns_per_core} heads and {t.t_per_chunk} steps per core, {stores}{loads}"
        )


class _Runner:
    """Inputs and results of one candidate, results poisoned."""

    def __init__(self, kernel: ScanKernel, tiling: ScanTiling) -> None:
        self._plan = scan_launch.load(kernel.problem_, tiling, tuned=True)
        self._full = _Arguments(kernel.problem_, kernel.sequences, kernel.T)
        self._small = _Arguments(kernel.problem_, 2, min(kernel.T, CHECK_STEPS))

    def run(self) -> None:
        self._full.call(self._plan)

    def check(self) -> Check:
        self._small.call(self._plan)
        found = worst(self._small.compare())
        return Check(found.error, found.bound, f"error of {found.what} against float64")


class _Arguments:
    def __init__(self, problem: ScanProblem, B: int, T: int) -> None:
        self.direction = problem.direction
        dtype, N, D = problem.storage.torch, problem.columns, problem.width
        g = torch.Generator().manual_seed(0)
        shape = (B, T, N, D)
        self.scores = torch.randn(shape[:3], generator=g).to(dtype)
        self.v, self.d_o = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
        self.o, self.d_v = (torch.full_like(self.v, torch.nan) for _ in range(2))
        self.d_scores = torch.full_like(self.scores, torch.nan)
        state = ScanState.empty(B, N, D, self.v)
        self.last = (state.m.clone(), state.u.clone(), state.w.clone())
        blocks = kernels.slots(B, T, packed=False)
        self.saved = self.v.new_empty((blocks, 2, N), dtype=problem.real.torch)
        if self.direction == BACKWARD:  # what it reads of a forward pass, from whichever kernel
            kernels.forward_ready(*self._inputs(), self.o, self.last, self.saved).run()

    def _inputs(self) -> tuple[Tensor, Tensor, None, None, bool]:
        return self.scores, self.v, None, None, False

    def call(self, plan: scan_launch.ScanPlan) -> None:
        if self.direction == FORWARD:
            kernels.forward_ready(*self._inputs(), self.o, self.last, None, plan).run()
        else:
            kernels.backward_ready(
                *self._inputs(), self.o, self.last, self.saved, self.d_o, None, self.d_scores,
                self.d_v, None, plan,
            ).run()  # fmt: skip

    def compare(self) -> list[Measured]:
        exact, eager = self._expected(torch.float64), self._expected(self.v.dtype)
        if self.direction == FORWARD:
            got = {"o": self.o}
        else:
            got = {"d_scores": self.d_scores, "d_v": self.d_v}
        return [compare(name, x, exact[name], eager[name]) for name, x in got.items()]

    def _expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        s, v = (x.to(dtype).requires_grad_() for x in (self.scores, self.v))
        o = reference(s, v)[0]
        d_s, d_v = torch.autograd.grad(o, (s, v), self.d_o.to(dtype))
        return {"o": o.detach(), "d_scores": d_s, "d_v": d_v}


@dataclass(frozen=True)
class ScanFamily:
    """Scan attention's kernels with their options on the command line."""

    @property
    def name(self) -> str:
        return "scan-attention"

    def add_arguments(self, parser: argparse._ArgumentGroup) -> None:
        _add_sizes(parser)
        parser.add_argument("--dtype", choices=sorted(SCANNED), default="float32")

    def tunables(self, options: Options) -> list[Tunable[Cpu]]:
        B, T, N, D = _sizes(options)
        threads, dtype = int(options["threads"] or 1), SCANNED[str(options["dtype"])]
        return [
            ScanKernel(
                scan_launch.problem_of(ATTENTION, direction, dtype, False, B, T, N, D, threads),
                B,
                T,
            )
            for direction in (FORWARD, BACKWARD)
        ]

    def add_gpu_arguments(self, parser: argparse._ArgumentGroup) -> None:
        _add_sizes(parser)
        parser.add_argument("--dtype", choices=sorted(GPU_BY_NAME), default="bfloat16")

    def gpu_tunables(self, options: Options, device: Gpu) -> list[TritonScanKernel]:
        B, T, N, D = _sizes(options)
        dtype = GPU_BY_NAME[str(options["dtype"])]
        kernel = str(options.get("kernel") or FINISH)  # `flashrnn pack` compiles each
        return [
            TritonScanKernel(
                TritonScanProblem(ATTENTION, direction, dtype, False, B * N, rounded(T), D),
                B,
                T,
                N,
                kernel,
            )
            for direction in (FORWARD, BACKWARD)
        ]

    def comparisons(self, options: Options) -> list[Comparison]:
        B, T, N, D = _sizes(options)
        dtype = SCANNED[str(options["dtype"])].torch
        s = torch.randn(B, T, N, dtype=dtype, requires_grad=True)
        v = torch.randn(B, T, N, D, dtype=dtype, requires_grad=True)
        d_o = torch.randn(B, T, N, D, dtype=dtype)

        def ours(s: Tensor, v: Tensor) -> Tensor:
            return scan_attention(s, v)[0]

        def timed(run: Call, train: bool) -> Callable[[], object]:
            def infer() -> object:
                with torch.no_grad():
                    return run(s, v)

            return (lambda: torch.autograd.grad(run(s, v), (s, v), d_o)) if train else infer

        return [
            Comparison(
                "forward and backward" if train else "forward",
                timed(ours, train),
                "eager composite",
                timed(eager_composite, train),
            )
            for train in (False, True)
        ]


def eager_composite(s: Tensor, v: Tensor) -> Tensor:
    """What one writes in eager torch: logcumsumexp and cumsum, one shift for a whole sequence.

    Overflows or loses everything where scores differ by more than the exponent's range.
    """
    shift = s.amax(1, keepdim=True).detach()
    weighted = ((s - shift).exp().unsqueeze(-1) * v).cumsum(1)
    return weighted * (shift - s.logcumsumexp(1)).exp().unsqueeze(-1)


def _add_sizes(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--batch", type=_positive, default=1, help="B (1)")
    parser.add_argument("--time", type=_positive, default=4096, help="T (4096)")
    parser.add_argument("--heads", type=_positive, default=8, help="N (8)")
    parser.add_argument("--head-dim", type=_positive, default=64, help="D (64)")


def _sizes(options: Options) -> tuple[int, int, int, int]:
    B, T, N, D = (int(options[name] or 1) for name in ("batch", "time", "heads", "head_dim"))
    return B, T, N, D


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def scan_attention_family() -> ScanFamily:
    """The entry point of `autotune run scan-attention`."""
    return ScanFamily()
