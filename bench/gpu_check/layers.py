"""Whole layers on the GPU: ours, cuDNN by way of torch.nn, and a plain loop, verified and timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autotune.measure_gpu import Stream, interleave
from bench.errors import BenchError
from bench.layers.cases import Judges, case_of, verify
from bench.layers.plan import subject
from bench.layers.problem import FORWARD, INNER_LAYER, Kind, Problem, Subject, problem_of
from bench.peers import eager_loop, torch_nn
from bench.shapes import GPU, Shape
from flashrnn import choose_backend
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from flashrnn.errors import FlashRNNError

PEERS = {"nn": torch_nn.contender, "loop": eager_loop.contender}
KINDS = (FORWARD, INNER_LAYER)
# For cuDNN torch flattens float16 and float32 weights; bfloat16 ones it copies in every call.
DTYPES = (BFLOAT16, FLOAT16, FLOAT32)
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """A layer of a cell in so many heads, in one dtype."""

    subject: Subject
    shape: Shape
    dtype: Dtype


@dataclass(frozen=True)
class Row:
    """One case and kind of call: seconds of ours and of each peer; `problem` "" if all agree."""

    name: str
    shape: str
    dtype: str
    kind: str
    chosen: str
    seconds: dict[str, float]
    noise: dict[str, float]
    problem: str = ""


def cases() -> list[Case]:
    """One head, as cuDNN has it; in the first type also heads of 64 units, as a loop has them."""
    found = []
    for dtype in DTYPES:
        for shape in GPU:
            found.append(Case(subject("lstm", 1), shape, dtype))
            if shape.D > 64 and dtype == DTYPES[0]:
                found.append(Case(subject("lstm", shape.D // 64), shape, dtype))
                found.append(Case(subject("slstm", shape.D // 64), shape, dtype))
    return found


def rows(
    asked: Sequence[Case], stream: Stream, seconds: float, device: str = "cuda"
) -> Iterator[Row]:
    """Verify each case and time it for about `seconds`."""
    for case in asked:
        dims = case.shape.dims(case.subject.heads)
        problem = on(problem_of(case.subject, dims, case.dtype), device)
        judges = Judges.of(problem)
        for kind in KINDS:
            yield _row(case, problem, judges, kind, stream, seconds)


def on(problem: Problem, device: str) -> Problem:
    """The problem with its tensors there."""
    weights = {name: w.to(device) for name, w in problem.weights.items()}
    inputs, d_h = problem.inputs.to(device), problem.d_h.to(device)
    return replace(problem, weights=weights, inputs=inputs, d_h=d_h)


def _row(
    case: Case, problem: Problem, judges: Judges, kind: Kind, stream: Stream, seconds: float
) -> Row:
    known: dict[str, Any] = {
        "name": case.subject.label,
        "shape": str(case.shape),
        "dtype": case.dtype.name,
        "kind": kind.label,
        "chosen": _choice(problem),
    }
    try:
        compared = case_of(problem, kind, torch.get_num_threads(), PEERS)
        verify(compared, judges)
        timings = interleave(
            {contender.label: contender.call for contender in compared.contenders},
            stream,
            seconds=seconds,
            min_rounds=MIN_ROUNDS,
        )
    except (BenchError, FlashRNNError, RuntimeError) as error:  # torch's and Triton's own, too
        return Row(**known, seconds={}, noise={}, problem=f"{type(error).__name__}: {error}")
    return Row(
        **known,
        seconds={name: timing.median for name, timing in timings.items()},
        noise={name: timing.noise for name, timing in timings.items()},
    )


def _choice(problem: Problem) -> str:
    """What backend="auto" says of the recurrence."""
    cell, dims = problem.cell, problem.dims
    wx = problem.inputs.new_empty(1).expand(dims.B, dims.T, len(cell.input), dims.N, dims.D)
    return choose_backend(wx, cell).reason
