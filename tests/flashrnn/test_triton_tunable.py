"""The Triton kernels as autotune sees them; candidates run in Triton's interpreter here."""

import pytest
import torch

from autotune.device import Device
from autotune.space import GpuFamily
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.families import gru_family, lstm_family
from flashrnn.passes.lower import lower
from flashrnn.runtime import triton_kernels
from flashrnn.tiling.triton import AlternatingTiling, FusedTiling, TritonProblem
from flashrnn.triton_tunable import TritonKernel, _KernelRunner

H100 = Device.named("h100-sxm")


def problem_of(direction, D=20, dtype="float32") -> TritonProblem:
    return TritonProblem(lower(lstm), direction, GPU_BY_NAME[dtype], Dims(3, 4, 2, D))


@pytest.mark.parametrize("direction", [INFERENCE, TRAINING, BACKWARD])
@pytest.mark.parametrize("schedule", ["fused", "alternating"])
def test_a_candidate_is_checked(direction, schedule, monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernel = TritonKernel(problem_of(direction), schedule)
    tiling = kernel.tiling(kernel.default(H100))
    runner = _KernelRunner(kernel.problem_, tiling, "cpu")
    check = runner.check()
    assert check.ok, str(check)
    with torch.no_grad():
        bits = runner.results()
        full = runner._full.got()
        assert len(bits) == sum(x.numel() * x.element_size() for x in full.values())
        assert bits == runner.results()
    some = next(iter(full.values()))
    assert bits.startswith(some.contiguous().numpy().tobytes())


def test_a_wrong_candidate_is_found(monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    source = triton_kernels.source_of
    from flashrnn import triton_tunable

    monkeypatch.setattr(
        triton_tunable,
        "source_of",
        lambda *a, **k: source(*a, **k).replace("1.0 / (1.0 + tl.exp(-x))", "1.0 / tl.exp(-x)"),
    )
    kernel = TritonKernel(problem_of(TRAINING), "fused")
    runner = _KernelRunner(kernel.problem_, kernel.tiling(kernel.default(H100)), "cpu")
    assert not runner.check().ok


@pytest.mark.parametrize("schedule", ["fused", "alternating"])
def test_default_is_a_solution_and_predicted_to_launch(schedule) -> None:
    kernel = TritonKernel(problem_of(BACKWARD, 64, "bfloat16"), schedule)
    default = kernel.default(H100)
    assert default in [dict(s) for s in kernel.model(H100).solutions()]
    predicted = kernel.predict(default, H100)
    assert predicted.threads == 32 * default["num_warps"]
    assert 0 < predicted.registers <= 255
    assert kernel.cost(default, H100) > 0
    kind = FusedTiling if schedule == "fused" else AlternatingTiling
    assert kernel.tiling(default) == kind(**default)
    assert "rows" in kernel.describe(default)


def test_what_is_remembered_depends_on_the_source() -> None:
    one = TritonKernel(problem_of(BACKWARD), "fused").problem()
    other = TritonKernel(problem_of(BACKWARD, 64), "fused").problem()
    assert one["source"] != other["source"]
    assert one["kernel"] == f"{lstm.key} backward triton fused"


def test_families_offer_their_kernels() -> None:
    options = {"batch": 16, "time": 8, "heads": 1, "head_dim": 64, "dtype": "bfloat16"}
    family = lstm_family()
    assert isinstance(family, GpuFamily)
    names = [k.name for k in family.gpu_tunables({**options, "tf32": False}, H100)]
    assert names == ["lstm inference, fused", "lstm training, fused", "lstm backward, fused"]
    large = {**options, "head_dim": 512, "dtype": "float32", "tf32": True}
    names = [k.name for k in gru_family().gpu_tunables(large, H100)]
    assert names[:2] == ["gru inference, fused", "gru inference, alternating"]
