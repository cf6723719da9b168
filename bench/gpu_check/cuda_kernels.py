"""Each CUDA kernel as predicted, as compiled, and as it runs: rows as those of Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch

from autotune import compiler_report
from autotune.errors import AutotuneError
from autotune.gpu import Gpu
from autotune.measure_gpu import Stream, interleave
from autotune.space import Compiled
from bench.gpu_check.kernels import MIN_ROUNDS, Row
from flashrnn.cells import lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.emit.cuda import BACKWARD, INFERENCE, TRAINING
from flashrnn.errors import FlashRNNError
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_cache import cubin_of
from flashrnn.tiling.cuda import CudaProblem, in_tiles
from flashrnn.tiling.cuda_choice import choose, predict, schedule_of, source_of
from flashrnn.tiling.cuda_latency import Tiling, seconds

# As the published table has them: N D = 768.
B, T, UNITS = 16, 1024, 768
HEAD_DIMS = (64, 128, 256, 768)
Call = Callable[[], object]
Make = Callable[[CudaProblem], Call]


def problems() -> list[CudaProblem]:
    """The kernels that are looked at."""
    return [
        CudaProblem(lower(cell), direction, BFLOAT16, Dims(B, T, UNITS // D, D))
        for cell, D, direction in product((lstm, slstm), HEAD_DIMS, (INFERENCE, TRAINING, BACKWARD))
    ]


def call_of(problem: CudaProblem, device: str = "cuda") -> Call:
    """A call of the kernel on random tensors, by the operators of backend="cuda"."""
    cell, dims, dtype = problem.program.cell, problem.dims, problem.dtype.torch
    sizes = dims.N, dims.D

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    wx = random(dims.B, dims.T, len(cell.input), *sizes)
    r = random(len(cell.recurrent), *sizes, dims.D) * dims.D**-0.5
    rest = cell.key, None, float("inf"), False, False
    inputs = wx, r, random(len(cell.gates), *sizes), None, None, *rest
    operators = torch.ops.flashrnn
    if problem.direction == INFERENCE:
        return lambda: operators.cuda_recurrence(*inputs)
    if problem.direction == TRAINING:
        return lambda: operators.cuda_training(*inputs)
    states, _, saved = operators.cuda_training(*inputs)
    d_states, need = torch.ones_like(states), [True, False, False, False, True]
    backward = r, None, None, states, saved, d_states, None, need, *rest
    return lambda: operators.cuda_backward(*backward)


def rows(
    asked: Sequence[CudaProblem], gpu: Gpu, stream: Stream, seconds: float, make: Make = call_of
) -> Iterator[Row]:
    """Compile each kernel and time it for about `seconds`."""
    for problem in asked:
        yield _row(problem, gpu, stream, seconds, make)


def compile_one(index: int, gpu: Gpu) -> None:
    """Compile the kernel of one of `problems`; what comes of it is kept on the disk."""
    problem = problems()[index]
    _cubin(problem, _chosen(problem, gpu), gpu)


def _chosen(problem: CudaProblem, gpu: Gpu) -> Tiling:
    return choose(in_tiles(problem), gpu)


def _cubin(problem: CudaProblem, tiling: Tiling, gpu: Gpu) -> bytes:
    name = f"{problem.program.cell.name}-{problem.direction}"  # as calls have it
    return cubin_of(name, source_of(problem, tiling), gpu.sm)


def _row(problem: CudaProblem, gpu: Gpu, stream: Stream, time: float, make: Make) -> Row:
    tiling = _chosen(problem, gpu)
    needed = predict(problem, tiling)
    known: dict[str, Any] = {
        "name": f"{problem.program.cell.name} {problem.direction}, CUDA, {schedule_of(tiling)}",
        "dims": problem.dims,
        "dtype": problem.dtype.name,
        "tiling": described(tiling),
        "chosen": "model-chosen, not measured",
        "predicted": needed,
        "predicted_seconds": seconds(problem, tiling, gpu),
    }
    try:
        cubin = _cubin(problem, tiling, gpu)
        report = compiler_report.report(Compiled(cubin, needed.shared_bytes, needed.threads, 0.0))
        known |= {"actual": report.facts(), "blocks_per_sm": report.occupancy(gpu.architecture)}
        call = make(problem)
        timing = interleave({"kernel": call}, stream, seconds=time, min_rounds=MIN_ROUNDS)["kernel"]
    except (AutotuneError, FlashRNNError, RuntimeError) as error:  # torch's own, too
        return Row(**known, problem=f"{type(error).__name__}: {error}")
    return Row(**known, seconds=timing.median, noise=timing.noise)


def described(tiling: Tiling) -> str:
    """In words."""
    return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in tiling.as_config().items())
