"""Which CUDA kernel serves a call: what tuning left, and what is chosen again after a spill."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cuda_stand_in import GPU, StandIn, install
from cuda_tilings import tiled
from problems import problem as tensors_of

from autotune import cache
from autotune.cache import Entry
from autotune.errors import CacheWarning
from flashrnn.cells import gru, lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.emit.cuda import CLUSTER, GRID, INFERENCE
from flashrnn.passes.lower import lower
from flashrnn.runtime import cuda_kernels
from flashrnn.tiling import cuda_choice
from flashrnn.tiling.cuda import CudaProblem, in_tiles
from flashrnn.tiling.cuda_choice import BLOCK, schedule_of
from flashrnn.tiling.cuda_step import STEP, StepTiling

CALL = Dims(5, 2, 1, 24)
PROBLEM = CudaProblem(lower(gru), INFERENCE, BFLOAT16, CALL)
KEY = cuda_kernels.problem_key(PROBLEM)


class Loaded(StandIn):
    """A kernel that is asked and never run. spilled: bytes by the part of the source that says."""

    spilled: dict[str, int]

    def __init__(self, cubin, name, shape) -> None:
        self.name, self.shape, self.source = name, shape, cubin.decode()
        at = (n for part, n in self.spilled.items() if part in self.source)
        self.spilled_bytes = next(at, 0)
        self.made.append(self)


@pytest.fixture
def loaded(monkeypatch, tmp_path) -> type[Loaded]:
    """Kernels are not even compiled; what tuning left is the test's own."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    install(monkeypatch)
    fresh = {"made": [], "launches": [], "held": {}, "spilled": {}}
    kind = type("LoadedHere", (Loaded,), fresh)
    monkeypatch.setattr(cuda_kernels, "Function", kind)
    return kind


def plan(problem: CudaProblem = PROBLEM):
    """Of a call of these sizes, as the operators ask for it."""
    like = torch.empty(0, dtype=torch.bfloat16)
    return cuda_kernels.plan_for(problem.program.cell, problem.direction, like, problem.dims)


def tile_of(schedule: str):
    if schedule == STEP:
        return StepTiling(32)
    return cuda_choice.cheapest(in_tiles(PROBLEM), GPU, schedule)


def remember(tiling) -> None:
    cache.remember_here(KEY, GPU.fingerprint, tiling.as_config())


@pytest.mark.parametrize("schedule", [BLOCK, CLUSTER, GRID, STEP])
def test_a_tuned_tiling_comes_before_the_models(schedule, loaded) -> None:
    assert schedule_of(plan().tiling) == BLOCK, "by the model"
    remember(tile_of(schedule))
    assert plan().tiling == tile_of(schedule), "what was tuned since takes the place of a plan"
    assert plan() is plan()
    alike = replace(PROBLEM, dims=Dims(16, 7, 1, 24))
    assert plan(alike).tiling == tile_of(schedule), "as many tiles of rows"


def test_a_capture_keeps_the_kernel_that_is_loaded(loaded, monkeypatch) -> None:
    before = plan()
    remember(tile_of(GRID))
    monkeypatch.setattr(cuda_kernels, "is_capturing", lambda like: True)
    assert plan() is before
    monkeypatch.setattr(cuda_kernels, "is_capturing", lambda like: False)
    assert plan().tiling == tile_of(GRID)


def test_it_is_what_runs(monkeypatch, tmp_path) -> None:
    """In the execution model, by a kernel that other tests compile too."""
    kind = install(monkeypatch)
    problem = in_tiles(CudaProblem(lower(gru), INFERENCE, BFLOAT16, Dims(5, 2, 1, 24)))
    tiling = tiled(gru, INFERENCE, BFLOAT16, problem.dims, BLOCK)[1]
    monkeypatch.setitem(
        cache._memo, cache._key(KEY, GPU.fingerprint), cache.Remembered(tiling.as_config(), None)
    )
    p = {k: v.detach() for k, v in tensors_of(gru, 5, 2, 1, 24, torch.bfloat16).items()}
    like = p["Wx"]
    assert cuda_kernels.plan_for(gru, INFERENCE, like, CALL).tiling == tiling
    assert [f.name for f in kind.made] == ["gru-inference"]


WRONG = {
    "of another version": ({"rows": 16}, "rows"),
    "too many registers": ({"warps": 1, "tiles_per_warp": 3, "k_tiles_in_registers": 99}, "fit"),
    "units left out": (
        {"warps": 1, "tiles_per_warp": 1, "k_tiles_in_registers": 0},
        "does not fit",
    ),
    "of no such block": ({"threads": 33}, "does not fit NVIDIA H100"),
    "half a tiling": ({"clustered": 1, "units": 8}, "missing"),
}


@pytest.mark.parametrize(("config", "why"), WRONG.values(), ids=WRONG)
def test_a_kept_tiling_that_does_not_fit_is_discarded(config, why, loaded) -> None:
    cache.remember_here(KEY, GPU.fingerprint, config)
    with pytest.warns(CacheWarning, match=rf"ignored a tuned tiling of gru: .*{why}.*tune again"):
        found = plan()
    assert found.tiling == cuda_kernels.untuned(PROBLEM, GPU)


def test_a_corrupt_file_is_discarded(loaded, tmp_path, monkeypatch) -> None:
    tiling = tile_of(GRID)
    cache.store(Entry("gru", GPU.fingerprint, KEY, tiling.as_config(), "", 2.0, None, [], steps=4))
    (path,) = (tmp_path / "tuned").iterdir()
    whole = path.read_text()
    monkeypatch.setattr(cache, "_memo", {})  # as in another process
    assert plan().tiling == tiling
    assert cache.step_seconds(KEY, GPU) == 0.5
    for broken in (whole[:-9], json.dumps({**json.loads(whole), "steps": 0})):
        path.write_text(broken)
        monkeypatch.setattr(cache, "_memo", {})
        monkeypatch.setattr(cuda_kernels, "_plans", {})
        with pytest.warns(CacheWarning, match="discarded unreadable"):
            assert schedule_of(plan().tiling) == BLOCK
        assert not path.exists()


def test_a_tuned_tiling_that_the_driver_does_not_hold(loaded) -> None:
    remember(tile_of(CLUSTER))
    loaded.held = {"cluster": 0}
    with pytest.warns(
        CacheWarning, match=r"ignored a tuned tiling of gru: a head of D=24.*holds 0"
    ):
        assert schedule_of(plan().tiling) == BLOCK


def large(D: int) -> CudaProblem:
    return CudaProblem(lower(lstm), INFERENCE, BFLOAT16, Dims(16, 1, 1, D))


def constants(problem: CudaProblem, tiling) -> str:
    """What only the source of this tiling says."""
    source = cuda_kernels.source_of(problem, tiling)
    return source[source.index("constexpr int D") : source.index("struct Cell")]


def choices(D: int, spilled: int):
    """What is chosen first, and where the compiler spills so many bytes in that."""
    first = cuda_choice.choose(large(D), GPU)
    return first, cuda_choice.second(large(D), first, GPU, spilled)


def test_where_the_compiler_spills_another_tiling_is_tried(loaded) -> None:
    first, second = choices(256, 200)
    loaded.spilled = {constants(large(256), first): 200}
    assert plan(large(256)).tiling == second != first
    assert [f.spilled_bytes for f in loaded.made] == [200, 0]
    assert plan(large(256)).tiling == second
    assert len(loaded.made) == 2, "a plan is made once"


def test_the_better_of_two_that_spill_is_kept(loaded) -> None:
    first, second = choices(256, 200)
    loaded.spilled = {
        constants(large(256), first): 200, constants(large(256), second): 4000,
    }  # fmt: skip
    assert plan(large(256)).tiling == first
    assert len(loaded.made) == 2


def test_a_spill_costs_less_than_a_slower_tiling(loaded) -> None:
    first, second = choices(640, 160)
    assert second not in (first, None)
    loaded.spilled = {constants(large(640), first): 160}
    assert plan(large(640)).tiling == first
    assert len(loaded.made) == 2


def test_a_spill_where_nothing_else_fits(loaded) -> None:
    """And where the driver does not hold what else fits."""
    first, second = choices(96, 4000)
    assert second is None
    loaded.spilled = {constants(large(96), first): 4000}
    assert plan(large(96)).tiling == first
    first, second = choices(1024, 200)
    assert schedule_of(second) == GRID
    loaded.spilled = {constants(large(1024), first): 200}
    resident = loaded.resident
    loaded.resident = lambda self, sms: 0 if self.spilled_bytes == 0 else resident(self, sms)
    assert plan(large(1024)).tiling == first
