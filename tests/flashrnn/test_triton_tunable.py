"""The Triton kernels as autotune sees them; candidates run in Triton's interpreter here."""

import pytest
import torch

from autotune import cache
from autotune.device import Device
from autotune.errors import CacheWarning
from autotune.registry import Origin
from autotune.space import GpuFamily, called
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.families import gru_family, lstm_family
from flashrnn.passes.lower import lower
from flashrnn.runtime import triton_kernels
from flashrnn.tiling.triton import AlternatingTiling, FusedTiling, TritonProblem, cheapest
from flashrnn.triton_tunable import TritonKernel, kernels_for, runner_of

H100 = Device.named("h100-sxm")


def problem_of(direction, D=20, dtype="float32") -> TritonProblem:
    return TritonProblem(lower(lstm), direction, GPU_BY_NAME[dtype], Dims(3, 4, 2, D))


@pytest.mark.parametrize("direction", [INFERENCE, TRAINING, BACKWARD])
@pytest.mark.parametrize("schedule", ["fused", "alternating"])
def test_a_candidate_is_checked(direction, schedule, monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernel = TritonKernel(problem_of(direction), schedule)
    runner = runner_of(kernel.problem_, cheapest(kernel.problem_, H100, schedule), "cpu")
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
    problem = problem_of(TRAINING)
    runner = runner_of(problem, cheapest(problem, H100, "fused"), "cpu")
    assert not runner.check().ok


@pytest.mark.parametrize(("schedule", "D"), [("fused", 64), ("alternating", 1024)])
def test_default_is_a_solution_and_predicted_to_launch(schedule, D) -> None:
    problem = problem_of(BACKWARD, D, "bfloat16")
    defaults = {k.schedule: k.default(H100) for k in kernels_for([problem])}
    default = defaults.pop(schedule)
    assert list(defaults.values()) == [None], "the other schedule is not used"
    kernel = TritonKernel(problem, schedule)
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
    assert one["kernel"] == f"{lstm.key} backward triton"


def test_what_is_remembered_is_used_whichever_schedule_won(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    problem = problem_of(BACKWARD, 64)
    for kernel in kernels_for([problem]):
        won = cheapest(problem, H100, kernel.schedule)
        cache.remember_here(kernel.problem(), H100.fingerprint, won.as_config())
        assert triton_kernels.select(problem, H100).tiling == won


def test_a_remembered_tiling_of_another_version_is_ignored(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    problem = problem_of(BACKWARD, 64)
    cache.remember_here(triton_kernels.problem_key(problem), H100.fingerprint, {"rows": 16})
    with pytest.warns(CacheWarning, match=r"ignored a tuned tiling of lstm: .*'rows'"):
        selected = triton_kernels.select(problem, H100)
    assert selected == triton_kernels.untuned(problem, H100)


@pytest.mark.parametrize("source", ["emit_fused", "emit_alternating"])
def test_a_change_of_either_schedule_is_another_race(source, monkeypatch) -> None:
    problem = problem_of(BACKWARD)
    before = triton_kernels.problem_key(problem)
    monkeypatch.setattr(triton_kernels, source, lambda *_, **__: "pass")
    assert triton_kernels.problem_key(problem) != before


def test_families_offer_their_kernels() -> None:
    options = {"batch": 16, "time": 8, "heads": 1, "head_dim": 64, "dtype": "bfloat16"}
    family = lstm_family()
    assert isinstance(family, GpuFamily)
    options = {**options, "tf32": False, "device": "h100-sxm"}
    names = [k.name for k in family.gpu_tunables(options, H100)]
    schedules = ("fused", "alternating")
    directions = ("inference", "training", "backward")
    assert names == [f"lstm {d}, {s}" for d in directions for s in schedules]
    races = Origin("flashrnn.families:lstm_family", options).rivals()
    assert [called(r) for r in races] == [f"lstm {d}, fused or alternating" for d in directions]
    large = {**options, "head_dim": 512, "dtype": "float32", "tf32": True}
    names = [k.name for k in gru_family().gpu_tunables(large, H100)]
    assert names[:2] == ["gru inference, fused", "gru inference, alternating"]
