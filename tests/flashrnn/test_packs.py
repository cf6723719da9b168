"""Packs: what they hold is what the model chooses; who reads them, and what is said of bad ones."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune import cache
from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import choose_backend, pack_check, pack_command, packs
from flashrnn.cells import elman, lstm
from flashrnn.cli import main
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT32, GPU_BY_NAME
from flashrnn.emit.triton import BACKWARD, TF32, TRAINING
from flashrnn.ir.cell import cell_of
from flashrnn.pack_command import CELLS
from flashrnn.packs import choose, pack
from flashrnn.packs.pack import SHIPPED, Pack, key_of, programs_of, read, text, write
from flashrnn.passes.lower import lower
from flashrnn.runtime import gpu_tensors, triton_build, triton_kernels
from flashrnn.tiling import triton as tiling
from flashrnn.tiling import triton_needs
from flashrnn.tiling.triton import AlternatingTiling, FusedTiling, TritonProblem

GPUS = ("a100-40-sxm", "h100-sxm", "l4", "rtx-4090")
H100 = Device.named("h100-sxm")
OTHER = FusedTiling(16, 64, 4, 1, 0)  # fits, and is not what the model likes


def problem_of(B=16, N=4, D=64, dtype=BFLOAT16, cell=lstm, precision="ieee") -> TritonProblem:
    return TritonProblem(lower(cell), TRAINING, dtype, Dims(B, 1, N, D), precision)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(triton_kernels, "_plans", {})
    pack._read.cache_clear()
    yield
    pack._read.cache_clear()


def mine(tmp_path, choices, fingerprint=H100.fingerprint):
    path = tmp_path / "packs" / "h100-sxm.json"
    write(Pack(fingerprint, "test", {}, choices), path)
    return path


def regenerated(name: str, cells, head_dims) -> None:
    shipped = read(SHIPPED / f"{name}.json")
    asked = choose.problems(cells, head_dims)
    again = choose.choices(asked, Device.named(name), shipped.rejected)
    assert again == {key: shipped.choices[key] for key in again}


def test_every_gpu_has_its_pack_and_it_is_whole() -> None:
    keys = {key_of(problem) for problem in choose.problems(list(CELLS.values()))}
    for name in GPUS:
        shipped = read(SHIPPED / f"{name}.json")
        assert shipped.fingerprint == Device.named(name).fingerprint
        assert shipped.choices.keys() == keys
        assert (SHIPPED / f"{name}.json").read_text() == text(shipped)
        assert json.loads(text(shipped))["measured"] is False
        assert len(text(shipped)) < 40_000


def test_a_sample_is_what_is_chosen_again() -> None:
    regenerated("h100-sxm", [lstm], (64,))
    regenerated("l4", [elman], (16, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_all_are_what_is_chosen_again(name) -> None:
    regenerated(name, list(CELLS.values()), choose.HEAD_DIMS)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_classes_choose_as_the_model_does(dtype) -> None:
    """Where batch and heads are powers of two a pack and the model agree."""
    choices = choose.choices(choose.problems([lstm], (64, 256)), H100)
    held = Pack(H100.fingerprint, "test", {}, choices)
    for B, N, D in ((1, 1, 64), (16, 32, 64), (32, 8, 40), (64, 64, 33), (256, 4, 64), (2, 4, 256)):
        problem = problem_of(B, N, D, dtype)
        assert held.tiling(problem) == tiling.choose(problem, H100).tiling, (B, N, D)
    assert programs_of(Dims(33, 1, 3, 64)) == 16  # 3 x 3 programs of 16 rows


def test_it_is_used_where_nothing_was_tuned(tmp_path) -> None:
    problem = problem_of()
    assert triton_kernels.select(problem, H100).tiling != OTHER
    runs = ((4, OTHER), (None, replace(OTHER, num_warps=8)))
    mine(tmp_path, {key_of(problem): ((64, runs),)})
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
    assert packs.lookup(problem, replace(H100, sms=66)) is None
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
    monkeypatch.setattr(triton_kernels.packs, "lookup", lambda *_: None)
    assert choose_backend(x, lstm).reason.endswith("its tiling is model-chosen, not measured")


WRONG = {
    "no JSON": lambda t: t[:100],
    "version": lambda t: t.replace('"version": 1', '"version": 0'),
    "no tiling of the schedule": lambda t: t.replace("fused", "alternating"),
    "is no pack": lambda t: t.replace('"choices"', '"chances"'),
    "list index out of range": lambda t: t.replace("[[null, 0]]", "[[null, 9]]"),
    "is not an integer": lambda t: t.replace('"num_warps": 4', '"num_warps": "4"'),
    "unexpected keyword": lambda t: t.replace('"num_warps"', '"warps"'),
    "does not fit": lambda t: t.replace('"d_per_program": 64', '"d_per_program": 63'),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_bad_pack_is_ignored_with_a_warning(why, tmp_path) -> None:
    problem = problem_of()
    path = mine(tmp_path, {key_of(problem): ((64, ((None, OTHER),)),)})
    path.write_text(WRONG[why](path.read_text()))
    expected = "is ignored, the cost model chooses: " + ("" if why == "no JSON" else f".*{why}")
    with pytest.warns(CacheWarning, match=expected):
        found = packs.lookup(problem, H100)
    assert found is not None  # the shipped one
    assert found.tiling != OTHER
    assert path.is_file()


def test_a_pack_of_nobodys_gpu_is_read_quietly(tmp_path) -> None:
    mine(tmp_path, {key_of(problem_of()): ((64, ((None, OTHER),)),)}, fingerprint="another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packs.lookup(problem_of(), H100).tiling != OTHER
        assert packs.lookup(problem_of(), Device.named("t4")) is None
        assert packs.lookup(problem_of(D=1000), H100) is None


def test_what_has_a_fault_is_chosen_again() -> None:
    found = []

    def faults(pairs):
        for problem, chosen in pairs:
            yield "it spills" if chosen.gates_in_registers and problem.padded == 64 else ""

    asked = choose.problems([elman], (32, 64))
    made = pack_check.by_report(asked, H100, {}, faults, lambda *told: found.append(told))
    key = f"{elman.key} {BACKWARD} bfloat16 64"
    assert all(t.gates_in_registers for t in made.rejected[key])
    fused = {t for _, runs in made.choices[key] for _, t in runs}
    assert fused and not any(t.gates_in_registers for t in fused)
    assert made.choices == choose.choices(asked, H100, made.rejected)
    assert {key.split()[-1] for key in made.rejected} == {"64"}
    assert {fault for _, fault, _, _ in found} == {"", "it spills"}


def test_the_command_writes_one(tmp_path, capsys) -> None:
    assert main(["pack", "--device", "t4", "--cells", "elman"]) == 0
    path = tmp_path / "packs" / "t4.json"
    assert str(path) in capsys.readouterr().out
    problem = problem_of(cell=elman)
    found = packs.lookup(problem, Device.named("t4"))
    assert found.tiling == tiling.choose(problem, Device.named("t4")).tiling
    assert read(path).versions["flashrnn-compiler"]
    assert main(["pack", "--device", "t5"]) == 2
    assert "t4" in capsys.readouterr().err


def test_the_command_compiles(tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(pack_command, "problems", lambda cells: choose.problems(cells, (16,))[:1])
    words = ["pack", "--device", "l4", "--cells", "elman", "--compile", "--jobs", "1"]
    assert main([*words, "--timeout", "200"]) == 0
    made = read(tmp_path / "packs" / "l4.json")
    assert made.chosen_by == pack_check.BY_REPORT
    assert made.versions.keys() >= {"triton", "ptxas"}
    assert all(
        isinstance(t, FusedTiling) for c in made.choices.values() for _, r in c for _, t in r
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in GPUS if read(SHIPPED / f"{n}.json").chosen_by == pack_check.BY_REPORT],
)
def test_kernels_of_a_pack_spill_nothing(name) -> None:
    """A sample of what the compiler's report took part in: every seventh kernel's first choice."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from autotune import compiler_report
    from flashrnn.runtime.triton_compile import compile_for

    gpu, shipped = Device.named(name), read(SHIPPED / f"{name}.json")
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
        assert packs.lookup(problem_of(), H100) is None
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
    chosen = choose.choice(problem, H100, every)
    assert all(isinstance(t, AlternatingTiling) for _, runs in chosen for _, t in runs)
