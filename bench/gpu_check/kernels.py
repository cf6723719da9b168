"""Each kernel as predicted, as compiled, and as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from autotune import compiler_report
from autotune.compiler_report import Report
from autotune.errors import AutotuneError
from autotune.gpu import Gpu
from autotune.measure_gpu import Stream, interleave, verify
from autotune.space import Config, GpuRunner, Prediction
from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT32
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.errors import FlashRNNError
from flashrnn.passes.lower import lower
from flashrnn.runtime.triton_kernels import select
from flashrnn.tiling.triton import TritonProblem, schedule_of
from flashrnn.triton_tunable import TritonKernel

B, T, N = 64, 128, 12
SIZES = ((BFLOAT16, (32, 64, 128)), (FLOAT32, (64,)))
MIN_ROUNDS = 10
Load = Callable[[TritonKernel, Config], GpuRunner]


@dataclass(frozen=True)
class Row:
    """One kernel. Predicted and measured seconds are of one call on a cold L2 cache.

    `problem` says what is wrong with it, "" for nothing: then the other fields are there.
    """

    name: str
    dims: Dims
    dtype: str
    tiling: str
    chosen: str
    predicted: Prediction
    predicted_seconds: float
    actual: dict[str, Any] | None = None
    blocks_per_sm: int = 0
    error: float | None = None
    seconds: float | None = None
    noise: float | None = None
    problem: str = ""

    def facts(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def problems() -> list[TritonProblem]:
    """The kernels that are looked at."""
    return [
        TritonProblem(lower(cell), direction, dtype, Dims(B, T, N, D))
        for dtype, sizes in SIZES
        for cell, D, direction in product(
            (lstm, gru, elman, slstm), sizes, (INFERENCE, TRAINING, BACKWARD)
        )
    ]


def load(kernel: TritonKernel, config: Config) -> GpuRunner:
    """The kernel on the GPU."""
    return kernel.load(config)


def rows(
    asked: Sequence[TritonProblem], gpu: Gpu, stream: Stream, seconds: float, load: Load = load
) -> Iterator[Row]:
    """Compile, check, and time each kernel for about `seconds`."""
    for problem in asked:
        yield _row(problem, gpu, stream, seconds, load)


def compile_one(index: int, gpu: Gpu) -> None:
    """Compile the kernel of one of `problems`; what comes of it is kept on the disk."""
    kernel, config, _ = _selected(problems()[index], gpu)
    kernel.compile(config, gpu)


def _selected(problem: TritonProblem, gpu: Gpu) -> tuple[TritonKernel, Config, str]:
    """The kernel that a call would run, its tiling, and who chose it."""
    selected = select(problem, gpu)
    kernel = TritonKernel(problem, schedule_of(selected.tiling))
    return kernel, selected.tiling.as_config(), selected.by


def _row(problem: TritonProblem, gpu: Gpu, stream: Stream, seconds: float, load: Load) -> Row:
    kernel, config, by = _selected(problem, gpu)
    known: dict[str, Any] = {
        "name": kernel.name,
        "dims": problem.dims,
        "dtype": problem.dtype.name,
        "tiling": kernel.describe(config),
        "chosen": by,
        "predicted": kernel.predict(config, gpu),
        "predicted_seconds": kernel.cost(config, gpu),
    }
    try:
        report = compiler_report.report(kernel.compile(config, gpu))
        known |= {"actual": report.facts(), "blocks_per_sm": report.occupancy(gpu.architecture)}
        runner = load(kernel, config)
        check = verify(runner, stream)
        known["error"] = check.error
        timing = interleave({"kernel": runner.run}, stream, seconds=seconds, min_rounds=MIN_ROUNDS)[
            "kernel"
        ]
    except (AutotuneError, FlashRNNError, RuntimeError) as error:  # torch's and Triton's own, too
        return Row(**known, problem=f"{type(error).__name__}: {error}")
    wrong = "" if check.ok else f"{check.what} is {check.error:.2g} > {check.bound:.2g}"
    wrong = wrong or _launch_problem(report, gpu)
    return Row(**known, seconds=timing.median, noise=timing.noise, problem=wrong)


def _launch_problem(report: Report, gpu: Gpu) -> str:
    """It ran: a report by which it cannot is wrong."""
    limits = gpu.architecture
    if report.occupancy(limits):
        return ""
    return f"it runs, and should not: {report.limiting(limits)}"
