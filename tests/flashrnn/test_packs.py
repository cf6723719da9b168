"""Packs: what they hold is what the model chooses; who reads them, and what is said of bad ones."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from pack_files import GPUS, H100, always, mine
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune import cache
from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import choose_backend, pack_check, packs
from flashrnn.cells import elman, lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT32, GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, TF32, TRAINING
from flashrnn.ir.cell import cell_of
from flashrnn.pack_command import CELLS as BY_NAME
from flashrnn.pack_command import asked_for
from flashrnn.packs import CELLS, cells
from flashrnn.packs.kind import Section
from flashrnn.packs.pack import KINDS, SHIPPED, Pack, read, text
from flashrnn.passes.lower import lower
from flashrnn.runtime import gpu_tensors, triton_build, triton_kernels
from flashrnn.tiling import triton as tiling
from flashrnn.tiling import triton_needs
from flashrnn.tiling.triton import AlternatingTiling, FusedTiling, TritonProblem

pytestmark = pytest.mark.usefixtures("own_packs")
OTHER = FusedTiling(16, 64, 4, 1, 0)  # fits, and is not what the model likes


def problem_of(B=16, N=4, D=64, dtype=BFLOAT16, cell=lstm, precision="ieee") -> TritonProblem:
    return TritonProblem(lower(cell), TRAINING, dtype, Dims(B, 1, N, D), precision)


def regenerated(name: str, own, head_dims) -> None:
    shipped = read(SHIPPED / f"{name}.json").sections[CELLS.name]
    again = CELLS.choices(cells.problems(own, head_dims), Device.named(name), shipped.rejected)
    assert again == {key: shipped.choices[key] for key in again}


def test_every_gpu_has_its_pack_and_it_is_whole() -> None:
    keys = {
        name: {KINDS[name].key_of(problem) for problem in problems}
        for name, problems in asked_for().items()
    }
    for name in GPUS:
        shipped = read(SHIPPED / f"{name}.json")
        assert shipped.fingerprint == Device.named(name).fingerprint
        assert {n: section.choices.keys() for n, section in shipped.sections.items()} == keys
        assert (SHIPPED / f"{name}.json").read_text() == text(shipped)
        assert json.loads(text(shipped))["measured"] is False
        assert len(text(shipped)) < 45_000


def test_a_sample_is_what_is_chosen_again() -> None:
    regenerated("h100-sxm", [lstm], (64,))
    regenerated("l4", [elman], (16, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_all_are_what_is_chosen_again(name) -> None:
    regenerated(name, list(BY_NAME.values()), cells.HEAD_DIMS)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_classes_choose_as_the_model_does(dtype) -> None:
    """Where batch and heads are powers of two a pack and the model agree."""
    choices = CELLS.choices(cells.problems([lstm], (64, 256)), H100)
    held = Pack(H100.fingerprint, {}, {CELLS.name: Section("test", choices)})
    for B, N, D in ((1, 1, 64), (16, 32, 64), (32, 8, 40), (64, 64, 33), (256, 4, 64), (2, 4, 256)):
        problem = problem_of(B, N, D, dtype)
        assert held.tiling(CELLS, problem) == tiling.choose(problem, H100).tiling, (B, N, D)
    assert CELLS.sizes_of(problem_of(33, 3)) == (33, 9)  # 3 x 3 programs of 16 rows


def test_it_is_used_where_nothing_was_tuned(tmp_path) -> None:
    problem = problem_of()
    assert triton_kernels.select(problem, H100).tiling != OTHER
    runs = ((4, OTHER), (None, replace(OTHER, num_warps=8)))
    mine(CELLS, tmp_path, {CELLS.key_of(problem): ((None, runs),)})
    selected = triton_kernels.select(problem, H100)
    assert selected.tiling == OTHER
    assert selected.by == "model-chosen, not measured: the pack h100-sxm.json by the test"
    assert triton_kernels.select(problem_of(N=5), H100).tiling == replace(OTHER, num_warps=8)
    # the next smaller head, another dtype and another GPU are not in it
    for other in (
        problem_of(D=32),
        problem_of(dtype=FLOAT32),
        problem_of(dtype=FLOAT32, precision=TF32),
    ):
        assert triton_kernels.select(other, H100).tiling != OTHER
    assert packs.lookup(CELLS, problem, replace(H100, sms=66)) is None
    key = triton_kernels.problem_key(problem)
    tuned = FusedTiling(16, 64, 8, 1, 2)
    cache.remember_here(key, H100.fingerprint, tuned.as_config())
    assert triton_kernels.select(problem, H100).tiling == tuned
    assert triton_kernels.select(problem, H100).by.startswith("tuned")


def test_choose_backend_says_that_nothing_was_measured(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    for module in (gpu_tensors, triton_kernels):
        monkeypatch.setattr(module, "device_of", lambda _: H100)
    with FakeTensorMode():
        x = torch.empty(16, 3, 4, 2, 64, dtype=torch.bfloat16, device="cuda")
    told = choose_backend(x, lstm).reason
    assert "model-chosen, not measured: the pack h100-sxm.json" in told
    monkeypatch.setattr(packs, "lookup", lambda *_: None)
    assert choose_backend(x, lstm).reason.endswith("its tiling is model-chosen, not measured")


WRONG = {
    "no JSON": lambda t: t[:100],
    "it is of version 1": lambda t: t.replace('"version": 2', '"version": 1'),
    "it is no pack: KeyError: 'metal'": lambda t: t.replace('"triton":', '"metal":'),
    "it is no pack": lambda t: t.replace('"choices"', '"chances"'),
    "list index out of range": lambda t: t.replace("[null,0]", "[null,9]"),
    "a class of sizes up to 0": lambda t: t.replace("[null,0]", "[0,0]"),
    "is neither an integer nor": lambda t: t.replace("[16,64,4,", "[16,64,4.0,"),
    "unexpected keyword": lambda t: t.replace('"num_warps"', '"warps"'),
    "does not fit": lambda t: t.replace("[16,64,4,", "[16,63,4,"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_bad_pack_is_ignored_with_a_warning(why, tmp_path) -> None:
    problem = problem_of()
    path = mine(CELLS, tmp_path, {CELLS.key_of(problem): always(OTHER)})
    damaged = WRONG[why](path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    expected = "is ignored, the cost model chooses: " + ("" if why == "no JSON" else f".*{why}")
    with pytest.warns(CacheWarning, match=expected):
        found = packs.lookup(CELLS, problem, H100)
    assert found is not None  # the shipped one
    assert found.tiling != OTHER
    assert path.is_file()


def test_a_pack_of_nobodys_gpu_is_read_quietly(tmp_path) -> None:
    mine(CELLS, tmp_path, {CELLS.key_of(problem_of()): always(OTHER)}, fingerprint="another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packs.lookup(CELLS, problem_of(), H100).tiling != OTHER
        assert packs.lookup(CELLS, problem_of(), Device.named("t4")) is None
        assert packs.lookup(CELLS, problem_of(D=1000), H100) is None


def test_what_has_a_fault_is_chosen_again() -> None:
    found = []

    def faults(kernels):
        for _, problem, chosen in kernels:
            yield "it spills" if chosen.gates_in_registers and problem.padded == 64 else ""

    asked = cells.problems([elman], (32, 64))
    pack = pack_check.by_report(
        {CELLS.name: asked}, H100, {}, faults, lambda *told: found.append(told)
    )
    made = pack.sections[CELLS.name]
    key = f"{elman.key} {BACKWARD} bfloat16 64"
    assert all(t.gates_in_registers for t in made.rejected[key])
    fused = {t for _, runs in made.choices[key] for _, t in runs}
    assert fused and not any(t.gates_in_registers for t in fused)
    assert made.choices == CELLS.choices(asked, H100, made.rejected)
    assert {key.split()[-1] for key in made.rejected} == {"64"}
    assert {fault for _, fault, _, _ in found} == {"", "it spills"}


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_kernels_of_a_pack_spill_nothing(name) -> None:
    """A sample of what the compiler's report took part in: every seventh kernel's first choice."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from autotune import compiler_report
    from flashrnn.runtime.triton_compile import compile_for

    gpu, shipped = Device.named(name), read(SHIPPED / f"{name}.json").sections[CELLS.name]
    assert shipped.chosen_by == pack_check.BY_REPORT
    for at, (key, choice) in enumerate(sorted(shipped.choices.items())):
        if at % 7 != GPUS.index(name):
            continue
        cell, direction, dtype, D = key.split()
        tf32 = dtype == "tf32"
        problem = TritonProblem(
            lower(cell_of(cell)),
            direction,
            GPU_BY_NAME["float32" if tf32 else dtype],
            Dims(16, 1, 1, int(D)),
            TF32 if tf32 else "ieee",
        )
        report = compiler_report.report(compile_for(problem, choice[0][1][0][1], gpu.sm))
        assert not report.spilled, key
        assert report.occupancy(gpu.architecture) > 0


def test_a_triton_that_does_not_hold_r_has_other_tilings(monkeypatch) -> None:
    """Measured with Triton 3.6 and 3.8: 139,264 and 151,552 bytes of shared memory, D = 128."""
    mine = Device.named("rtx-5090")
    large = problem_of(D=128)
    assert isinstance(tiling.choose(large, mine).tiling, FusedTiling)
    versions = {"3.8.0": False, "3.6.0+git1": False, "3.9.0": True, "3.10": True}
    for installed, holds in versions.items():
        monkeypatch.setattr(triton_needs, "version", lambda _, told=installed: told)
        triton_needs.holds_r.cache_clear()
        assert triton_needs.holds_r() == holds
    monkeypatch.setattr(triton_needs, "version", lambda _: "3.8.0")
    triton_needs.holds_r.cache_clear()
    tiling.choose.cache_clear()
    try:
        assert packs.lookup(CELLS, problem_of(), H100) is None
        for D, direction, needed in ((128, TRAINING, 139_264), (128, BACKWARD, 151_552)):
            problem = replace(problem_of(D=D), direction=direction)
            for found in tiling.tilings(problem, H100, "fused"):
                assert found.gates_in_registers == 0
            smallest = tiling.predict(problem, FusedTiling(16, D, 8, 1, 0)).shared_bytes
            assert needed <= smallest <= 1.2 * needed
        assert isinstance(tiling.choose(large, mine).tiling, AlternatingTiling)
        assert "shared memory" in tiling.choose(large, mine).reason
    finally:
        triton_needs.holds_r.cache_clear()
        tiling.choose.cache_clear()


def test_alternating_where_nothing_is_left() -> None:
    problem = problem_of(B=64, D=128)
    every = tiling.tilings(problem, H100, "fused")
    chosen = CELLS.choice(problem, H100, every)
    assert all(isinstance(t, AlternatingTiling) for _, runs in chosen for _, t in runs)
