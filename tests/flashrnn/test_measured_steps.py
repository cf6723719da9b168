"""The models of time against what was measured on a GPU (tests/flashrnn/measured)."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from autotune.device import Device
from autotune.gpu import Gpu
from flashrnn import cells
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.passes.lower import lower
from flashrnn.tiling import triton
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import choose, schedule_of, tiling_of
from flashrnn.tiling.cuda_latency import Tiling, step_seconds
from flashrnn.tiling.triton import FusedTiling, TritonProblem


@cache
def measured(what: str) -> dict:
    path = Path(__file__).parent / "measured" / f"{what}_steps_h200.json"
    return json.loads(path.read_text(encoding="utf-8"))


def gpu_of(found: dict) -> Gpu:
    return replace(Device.named("h200"), clock_mhz=found["clock_mhz"])


@dataclass(frozen=True)
class Step:
    """One kernel: microseconds of a step."""

    problem: CudaProblem
    tiling: Tiling
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def cuda_steps() -> Iterator[Step]:
    """Kernels without spills."""
    found = measured("cuda")
    for row in found["rows"]:
        if row["spilled_bytes"]:
            continue
        dims = Dims(found["B"], 1, row["N"], row["D"])
        problem = CudaProblem(lower(getattr(cells, row["cell"])), row["direction"], BFLOAT16, dims)
        tiling = tiling_of(row["tiling"])
        predicted = 1e6 * step_seconds(problem, tiling, gpu_of(found))
        yield Step(problem, tiling, row["step_microseconds"], predicted)


def root_mean_square(errors: list[float]) -> float:
    return (sum(e * e for e in errors) / len(errors)) ** 0.5


def test_cuda_steps_are_predicted_as_measured() -> None:
    steps = list(cuda_steps())
    assert len(steps) == 156
    assert root_mean_square([s.error for s in steps]) <= 0.10
    assert max(abs(s.error) for s in steps) <= 0.30
    by_schedule = defaultdict(list)
    for s in steps:
        by_schedule[schedule_of(s.tiling)].append(s.error)
    for schedule, errors in by_schedule.items():
        assert abs(median(errors)) <= 0.05, schedule


def test_the_model_takes_a_tiling_near_the_fastest_that_was_measured() -> None:
    problems = defaultdict(list)
    for s in cuda_steps():
        problems[s.problem].append(s)
    lost = []
    for steps in problems.values():
        chosen, fastest = min(steps, key=lambda s: s.predicted), min(s.measured for s in steps)
        lost.append(chosen.measured / fastest - 1)
    assert len(lost) == 22
    assert max(lost) <= 0.30
    assert sum(lost) / len(lost) <= 0.06


def test_triton_steps_are_predicted_as_measured() -> None:
    found = measured("triton")
    gpu, errors = gpu_of(found), []
    for row in found["rows"]:
        rows, units, warps = row["tiling"]
        dims = Dims(found["B"], found["T"], found["N"], row["D"])
        program = lower(getattr(cells, row["cell"]))
        problem = TritonProblem(program, row["direction"], BFLOAT16, dims)
        seconds = triton.cost(problem, FusedTiling(rows, units, warps, 1, 0), gpu)
        errors.append(1e6 * seconds / dims.T / row["step_microseconds"] - 1)
    assert len(errors) == 35
    assert root_mean_square(errors) <= 0.08
    assert max(abs(e) for e in errors) <= 0.20


@pytest.mark.parametrize("D", [64, 128])
def test_the_models_of_both_back_ends_rank_them_as_measured(D) -> None:
    """An LSTM, a step of training and one backward: backend="auto" goes by this."""
    gpu, program = gpu_of(measured("cuda")), lower(cells.lstm)
    told, got = [0.0, 0.0], [0.0, 0.0]
    for direction in ("training", "backward"):
        one, dims = CudaProblem(program, direction, BFLOAT16, Dims(16, 1, 1, D)), Dims(64, 1, 12, D)
        told[0] += step_seconds(one, choose(one, gpu), gpu)
        many = TritonProblem(program, direction, BFLOAT16, dims)
        told[1] += triton.cost(many, triton.choose(many, gpu).tiling, gpu)
        got[0] += min(s.measured for s in cuda_steps() if s.problem == one)
        got[1] += min(
            row["step_microseconds"]
            for row in measured("triton")["rows"]
            if (row["cell"], row["direction"], row["D"]) == ("lstm", direction, D)
        )
    assert got[0] < got[1]
    assert told[0] < told[1]
