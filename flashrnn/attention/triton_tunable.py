"""The Triton kernels of scan attention as autotune sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autotune.device import Device
from autotune.gpu import Gpu
from autotune.space import Check, Compiled, Config, GpuRunner, Prediction
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.packs import SCANS
from flashrnn.runtime import selection, triton_scan
from flashrnn.runtime import triton_scan_attention as operators
from flashrnn.runtime.triton_scan import FINISH, TritonScanPlan
from flashrnn.runtime.triton_scan_compile import compile_scan
from flashrnn.scan_reference import ScanState
from flashrnn.scan_reference import attention_reference as reference
from flashrnn.tiling import triton_scan as tiling
from flashrnn.tiling.triton_scan import TritonScanProblem, TritonScanTiling
from flashrnn.tolerance import Comparison, compare, worst

if TYPE_CHECKING:
    from constrint import Model

Tensor = torch.Tensor
# Steps of a candidate's check against the reference, which is quadratic.
CHECK_STEPS = 200


@dataclass(frozen=True)
class TritonScanKernel:
    """One direction of scan attention on a GPU, as autotune sees it.

    B, T, N: of the call that is timed; the problem rounds T as a plan does. kernel: which of those
    that share a tiling is compiled without a GPU; FINISH is the largest.
    """

    problem_: TritonScanProblem
    B: int
    T: int
    N: int
    kernel: str = FINISH

    @property
    def name(self) -> str:
        return self.problem_.name

    def problem(self) -> dict[str, int | str]:
        return triton_scan.problem_key(self.problem_)

    def model(self, device: Gpu) -> Model:
        return tiling.model(self.problem_, device)

    def cost(self, config: Config, device: Gpu) -> float:
        return tiling.cost(config, self.problem_, device)

    def default(self, device: Gpu) -> dict[str, int]:
        return selection.untuned(SCANS, self.problem_, device).tiling.as_config()

    def describe(self, config: Config) -> str:
        t = TritonScanTiling.of_config(config)
        chunks = -(-self.T // t.t_per_chunk)
        schedule = "sequential" if chunks == 1 else f"{chunks} chunks"
        return (
            f"{schedule}, {t.t_per_block} steps × {t.d_per_program} channels, {t.num_warps} warps"
        )

    def predict(self, config: Config, device: Gpu) -> Prediction:
        return tiling.predict(self.problem_, TritonScanTiling.of_config(config))

    def compile(self, config: Config, device: Gpu) -> Compiled:
        chosen = TritonScanTiling.of_config(config)
        return compile_scan(self.problem_, chosen, device.sm, self.kernel)

    def build(self, config: Config) -> None:
        self.compile(config, Device.current("cuda"))

    def load(self, config: Config) -> GpuRunner:
        return Runner(self, TritonScanTiling.of_config(config), "cuda")


class Runner:
    """Inputs and results of one candidate, results poisoned."""

    def __init__(self, kernel: TritonScanKernel, chosen: TritonScanTiling, device: str) -> None:
        plan = triton_scan.load(kernel.problem_, chosen, interpreted=device == "cpu")
        self.full = _Arguments(kernel, plan, kernel.T, device)
        self._small = _Arguments(kernel, plan, min(kernel.T, CHECK_STEPS), device)

    def run(self) -> None:
        self.full.call()

    def check(self) -> Check:
        self._small.call()
        found = worst(self._small.compare())
        return Check(found.error, found.bound, f"error of {found.what} against float64")

    def results(self) -> bytes:
        self.full.call()
        flat = (x.contiguous().flatten().view(torch.uint8) for x in self.full.got().values())
        return b"".join(bytes(x.cpu().numpy().tobytes()) for x in flat)


class _Arguments:
    def __init__(self, kernel: TritonScanKernel, plan: TritonScanPlan, T: int, device: str) -> None:
        problem, B, N = kernel.problem_, kernel.B, kernel.N
        self._plan, self._direction = plan, problem.direction
        dtype, D = problem.storage.torch, problem.width
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g).to(device, dtype)

        self.scores, self.v, self.d_o = normal(B, T, N), normal(B, T, N, D), normal(B, T, N, D)
        self.o, self.d_v = (torch.full_like(self.v, torch.nan) for _ in range(2))
        self.d_scores = torch.full_like(self.scores, torch.nan)
        self.last = tuple(torch.full_like(x, torch.nan) for x in ScanState.empty(B, N, D, self.v))
        self.saved: Tensor | None = None
        if self._direction == BACKWARD:  # what it reads of a forward pass, by the model's choice
            self.saved = self.v.new_empty((2, B, N, T), dtype=torch.float32)
            self._forward(None)

    def _inputs(self) -> tuple[Tensor, Tensor, None, None, bool]:
        return self.scores, self.v, None, None, False

    def _forward(self, plan: TritonScanPlan | None) -> None:
        m, u, w = self.last
        operators.forward_into(*self._inputs(), self.o, (m, u, w), self.saved, plan)

    def call(self) -> None:
        """One call as the library makes it."""
        if self._direction == FORWARD:
            self._forward(self._plan)
            return
        assert self.saved is not None
        m, u, w = self.last
        operators.backward_into(
            *self._inputs(), self.o, (m, u, w), self.saved, self.d_o, None, self.d_scores, self.d_v,
            self._plan,
        )  # fmt: skip

    def got(self) -> dict[str, Tensor]:
        """The results of the last call."""
        if self._direction == FORWARD:
            return {"o": self.o}
        return {"d_scores": self.d_scores, "d_v": self.d_v}

    def compare(self) -> list[Comparison]:
        exact, eager = self._expected(torch.float64), self._expected(self.v.dtype)
        return [compare(name, x, exact[name], eager[name]) for name, x in self.got().items()]

    def _expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        s, v = (x.to(dtype).requires_grad_() for x in (self.scores, self.v))
        o = reference(s, v)[0]
        d_s, d_v = torch.autograd.grad(o, (s, v), self.d_o.to(dtype))
        return {"o": o.detach(), "d_scores": d_s, "d_v": d_v}
