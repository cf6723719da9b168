"""What the tiling model promises, held against the real compiler; no GPU is needed.

Kernels are compiled and disassembled, not run.
"""

import statistics
from dataclasses import replace

import pytest

from autotune import compiler_report
from autotune.device import Device
from flashrnn.cells import elman, gru, indrnn, lstm, peephole_lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, IEEE, INFERENCE, TF32, TRAINING
from flashrnn.passes.lower import lower
from flashrnn.runtime.triton_compile import compile_for
from flashrnn.tiling.triton import (
    AlternatingTiling,
    FusedTiling,
    TritonProblem,
    choose,
    predict,
)

pytest.importorskip("triton", reason="Triton is not installed")

GPUS = {
    80: "a100-40-sxm",
    86: "a10",
    89: "l4",
    90: "h100-sxm",
    100: "b200",
    120: "rtx-5090",
}
# Bytes that one instruction loads for a warp from shared memory into a product's operand.
LDSM_BYTES = 512


def problem_of(cell, direction, dtype, D, B=16, precision=IEEE) -> TritonProblem:
    return TritonProblem(lower(cell), direction, GPU_BY_NAME[dtype], Dims(B, 1, 4, D), precision)


def compiled(problem: TritonProblem, tiling, sm: int) -> compiler_report.Report:
    return compiler_report.report(compile_for(problem, tiling, sm))


def held_to_its_promise(problem: TritonProblem, sm: int) -> float:
    """The relative error of the predicted registers."""
    gpu = Device.named(GPUS[sm])
    chosen = choose(problem, gpu)
    assert isinstance(chosen.tiling, FusedTiling), chosen.reason
    report, predicted = compiled(problem, chosen.tiling, sm), predict(problem, chosen.tiling)
    assert not report.spilled
    assert report.stack_bytes == 0
    assert report.occupancy(gpu.architecture) > 0
    in_registers = chosen.tiling.gates_in_registers == problem.products
    slack = 1.1 if in_registers else 1.2
    assert report.shared_bytes <= predicted.shared_bytes <= slack * report.shared_bytes
    assert report.step is not None
    assert (report.step.code.classes["tensor"] > 0) == problem.tensor_cores
    return abs(predicted.registers / report.registers - 1.0)


@pytest.mark.parametrize(
    ("cell", "direction", "dtype", "D", "sm"),
    [
        (lstm, TRAINING, "bfloat16", 128, 120),
        (slstm, BACKWARD, "bfloat16", 128, 86),
        (gru, BACKWARD, "float16", 48, 90),
        (elman, INFERENCE, "bfloat16", 16, 100),
        (lstm, BACKWARD, "float32", 64, 89),
    ],
)
def test_sample_of_the_matrix(cell, direction, dtype, D, sm) -> None:
    assert held_to_its_promise(problem_of(cell, direction, dtype, D), sm) < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("sm", GPUS)
def test_more_of_the_matrix(sm) -> None:
    """No spill at first choice, and registers predicted with a median error of at most 10%."""
    errors = []
    for at, cell in enumerate((lstm, gru, elman, slstm)):
        for dtype, sizes in (("bfloat16", (16, 32, 64, 96, 128)), ("float32", (16, 32, 64))):
            for D in sizes[(sm // 10 + at) % 2 :: 2]:
                for direction in (TRAINING, BACKWARD):
                    errors.append(held_to_its_promise(problem_of(cell, direction, dtype, D), sm))
    assert statistics.median(errors) <= 0.1
    assert max(errors) < 0.5


@pytest.mark.parametrize(
    ("cell", "direction", "D", "warps"),
    [
        (lstm, TRAINING, 64, 4),
        (gru, BACKWARD, 64, 8),
        pytest.param(slstm, BACKWARD, 64, 4, marks=pytest.mark.slow),
        pytest.param(elman, TRAINING, 128, 8, marks=pytest.mark.slow),
        pytest.param(lstm, BACKWARD, 32, 2, marks=pytest.mark.slow),
    ],
)
def test_r_in_registers_is_not_read_again(cell, direction, D, warps) -> None:
    """A step loads exactly R less from shared memory than that of a kernel that leaves R there."""
    problem = problem_of(cell, direction, "bfloat16", D)
    loads = []
    for held in (0, problem.products):
        tiling = FusedTiling(16, D, warps, 1, held)
        step = compiled(problem, tiling, 80).step
        assert step is not None
        loads.append(step.code.mnemonics["LDSM"])
    r_bytes = problem.products * D * D * problem.dtype.bytes
    assert loads[0] - loads[1] == r_bytes // (LDSM_BYTES * warps)


def test_lengths_do_not_cost_r_its_registers(monkeypatch) -> None:
    """A call with `lengths` is another specialisation, and keeps R where it is."""
    from flashrnn.runtime import triton_compile

    signature = triton_compile._source

    def ragged(function, problem):
        source = signature(function, problem)
        at = function.arg_names.index("lengths")
        source.signature["lengths"] = "*i64"
        source.constants.pop((at,))
        source.attrs[(at,)] = [["tt.divisibility", 16]]
        return source

    monkeypatch.setattr(triton_compile, "_source", ragged)
    problem = problem_of(lstm, TRAINING, "bfloat16", 64)
    tiling = FusedTiling(16, 64, 8, 1, 4)
    report = compiled(problem, tiling, 90)
    assert report.step is not None
    assert report.step.code.mnemonics["LDSM"] < 16  # of R alone
    assert not report.spilled


def test_tf32_is_used_where_asked() -> None:
    problem = problem_of(elman, TRAINING, "float32", 32, precision=TF32)
    held_to_its_promise(problem, 90)


@pytest.mark.parametrize(
    ("direction", "dtype", "D"), [(TRAINING, "float32", 96), (BACKWARD, "bfloat16", 300)]
)
def test_alternating(direction, dtype, D) -> None:
    problem = problem_of(slstm, direction, dtype, D)
    gpu = Device.named("rtx-4090")
    chosen = choose(problem, gpu)
    assert isinstance(chosen.tiling, AlternatingTiling)
    assert "no fused tiling fits sm_89" in chosen.reason
    report = compiled(problem, chosen.tiling, 89)
    assert not report.spilled
    assert report.shared_bytes <= predict(problem, chosen.tiling).shared_bytes
    assert report.occupancy(gpu.architecture) > 0


def test_a_user_cell_with_parameters_and_padding() -> None:
    held_to_its_promise(problem_of(peephole_lstm, BACKWARD, "bfloat16", 48), 80)
    problem = problem_of(indrnn, TRAINING, "float32", 300)
    tiling = choose(problem, Device.named("h100-sxm")).tiling
    assert isinstance(tiling, FusedTiling)
    report = compiled(problem, tiling, 90)
    assert not report.spilled
    assert report.shared_bytes <= predict(problem, tiling).shared_bytes


def test_every_problem_of_the_matrix_has_an_answer() -> None:
    """A fused tiling, or the alternating schedule and the limit; all bf16 to 128 are fused."""
    for sm, name in GPUS.items():
        gpu = Device.named(name)
        for cell in (lstm, gru, elman, slstm):
            for direction in (TRAINING, BACKWARD):
                for D in (16, 32, 64, 96, 128):
                    bf16 = problem_of(cell, direction, "bfloat16", D)
                    assert isinstance(choose(bf16, gpu).tiling, FusedTiling), (sm, cell.name, D)
                    chosen = choose(replace(bf16, dtype=GPU_BY_NAME["float32"]), gpu)
                    fused = isinstance(chosen.tiling, FusedTiling)
                    assert fused != bool(chosen.reason)
