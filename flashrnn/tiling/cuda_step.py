"""Tilings of the CUDA schedule that alternates with a library's product (csrc/cuda/step_*.hpp).

One launch of a pointwise kernel per time step, a thread per unit and row: for heads that no other
schedule holds. Nothing stays on the chip between steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from autotune import resources
from autotune.gpu import Gpu
from autotune.space import Prediction
from constrint import Model
from constrint.expression import Operand
from flashrnn.emit.cuda import emit_step
from flashrnn.tiling.cuda import WARP, CudaProblem

STEP = "step"  # the schedule's name
# Registers per thread; an estimate above all that the cells of the library need.
REGISTERS = 64


@dataclass(frozen=True)
class StepTiling:
    """A solved tiling: threads per block."""

    threads: int

    def as_config(self) -> dict[str, int]:
        """The tiling as a solution of the model."""
        return asdict(self)


def model(problem: CudaProblem, gpu: Gpu) -> Model:
    """The blocks that launch; the largest that leaves no multiprocessor idle is preferred."""
    m = Model(f"{problem.program.cell.name} {problem.direction}, a step, on sm_{gpu.sm}")
    threads = m.int_var("threads", (WARP, 64, 128, 256))
    dims = problem.dims
    numbers: Operand = dims.B * dims.N * dims.D
    m.add(
        (threads == WARP) | (numbers >= threads * gpu.sms), name="a block for each multiprocessor"
    )
    resources.constrain(m, gpu.architecture, threads=threads, registers=REGISTERS, shared_bytes=0)
    m.maximize(threads)
    return m


def choose(problem: CudaProblem, gpu: Gpu) -> StepTiling:
    """The preferred tiling; there always is one."""
    return StepTiling(**model(problem, gpu).solve())


def predict(tiling: StepTiling) -> Prediction:
    """What the compiler will need at most."""
    return Prediction(REGISTERS, 0, tiling.threads)


def source_of(problem: CudaProblem, tiling: StepTiling) -> str:
    """The kernel's source for this tiling."""
    return emit_step(
        problem.program, problem.direction, problem.dtype, D=problem.dims.D, **tiling.as_config()
    )
