"""The scans' Triton kernels by the real compiler: no spill anywhere, and what was predicted.

Kernels are compiled and disassembled, not run.
"""

import pytest

from autotune import compiler_report
from autotune.device import Device
from flashrnn.attention.family import scan_attention_family
from flashrnn.attention.triton_tunable import Runner
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION, LINEAR
from flashrnn.runtime import triton_scan
from flashrnn.runtime.triton_scan import FINISH, JOIN, TOTALS
from flashrnn.runtime.triton_scan_compile import compile_scan
from flashrnn.tiling.triton_scan import TritonScanProblem, cheapest, model, predict

pytest.importorskip("triton", reason="Triton is not installed")

GPUS = {80: "a100-40-sxm", 90: "h100-sxm", 100: "b200"}


def problem_of(kind, direction, dtype, width, *, is_complex=False, rows=8, T=65536):
    return TritonScanProblem(kind, direction, GPU_BY_NAME[dtype], is_complex, rows, T, width)


def held(problem, sm, kernels=(FINISH,), **options) -> None:
    gpu = Device.named(GPUS[sm])
    tiling = cheapest(problem, gpu)
    for kernel in kernels:
        report = compiler_report.report(compile_scan(problem, tiling, sm, kernel, **options))
        assert not report.spilled, (kernel, tiling)
        assert report.stack_bytes == 0
        assert report.occupancy(gpu.architecture) > 0
        if kernel == FINISH and problem.kind == ATTENTION:
            predicted = predict(problem, tiling)
            assert abs(predicted.registers / report.registers - 1) < 0.35


SAMPLE = [
    (ATTENTION, FORWARD, "float32", 64, 80),
    (ATTENTION, BACKWARD, "bfloat16", 128, 90),
    (ATTENTION, BACKWARD, "float32", 20, 100),
    (LINEAR, BACKWARD, "float32", 96, 90),
]


@pytest.mark.parametrize(("kind", "direction", "dtype", "width", "sm"), SAMPLE)
def test_sample_of_the_matrix(kind, direction, dtype, width, sm) -> None:
    held(problem_of(kind, direction, dtype, width), sm)


@pytest.mark.slow
@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_more_of_the_matrix(direction, sm) -> None:
    for dtype, width in (("float32", 16), ("float32", 128), ("bfloat16", 64), ("float16", 23)):
        held(problem_of(ATTENTION, direction, dtype, width), sm, (TOTALS, JOIN, FINISH))
    held(problem_of(ATTENTION, direction, "float32", 64), sm, packed=True)
    held(problem_of(LINEAR, direction, "bfloat16", 512), sm, (TOTALS, JOIN, FINISH))
    held(problem_of(LINEAR, direction, "float32", 40, is_complex=True), sm)


@pytest.mark.parametrize("kind", [ATTENTION, LINEAR])
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_every_problem_has_a_tiling_on_every_gpu(kind, direction) -> None:
    for name in (*GPUS.values(), "t4", "l4", "rtx-5090"):
        for width in (1, 23, 64, 300):
            for rows, T in ((1, 64), (8, 65536), (4096, 4096)):
                p = problem_of(kind, direction, "float32", width, rows=rows, T=T)
                t = cheapest(p, Device.named(name))
                assert t.as_config() in [dict(s) for s in model(p, Device.named(name)).solutions()]
                assert predict(p, t).threads == 32 * t.num_warps


OPTIONS = {"batch": 1, "time": 40, "heads": 1, "head_dim": 9, "dtype": "float32"}


@pytest.mark.parametrize("index", [0, 1])
def test_a_candidate_is_checked_and_a_wrong_one_found(index, monkeypatch) -> None:
    """The tunables run in the interpreter here."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu = Device.named("h100-sxm")
    tunable = scan_attention_family().gpu_tunables(OPTIONS, gpu)[index]
    config = tunable.default(gpu)
    assert tunable.cost(config, gpu) > 0
    assert "channels" in tunable.describe(config)
    tiling = triton_scan.TritonScanTiling.of_config(config)
    runner = Runner(tunable, tiling, "cpu")
    assert runner.check().ok, str(runner.check())
    assert runner.results() == runner.results()
    source = triton_scan.source_of
    monkeypatch.setattr(
        triton_scan,
        "source_of",
        lambda *a, **k: (
            source(*a, **k)
            .replace("tl.exp(masked -", "tl.exp2(masked -")
            .replace("p = tl.exp(tl.where(later", "p = tl.exp2(tl.where(later")
        ),
    )
    assert not Runner(tunable, tiling, "cpu").check().ok


def test_what_is_remembered_depends_on_the_problem() -> None:
    one = triton_scan.problem_key(problem_of(ATTENTION, FORWARD, "float32", 64))
    other = triton_scan.problem_key(problem_of(ATTENTION, FORWARD, "float32", 23))
    assert one["kernel"] == "scan attention forward triton"
    assert one["source"] != other["source"]
