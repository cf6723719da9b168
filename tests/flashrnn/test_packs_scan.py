"""Scan attention in packs: what they hold is what the model chooses, and calls take it."""

from dataclasses import replace

import pytest
import torch
from pack_files import GPUS, H100, mine
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune import cache, compiler_report
from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import pack_check, packs
from flashrnn.attention.family import scan_attention_family
from flashrnn.dtypes import BFLOAT16, FLOAT32, GPU_BY_NAME
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION, LINEAR
from flashrnn.packs import SCANS, scans
from flashrnn.packs.kind import Section
from flashrnn.packs.pack import SHIPPED, Pack, read
from flashrnn.runtime import triton_scan, triton_scan_attention
from flashrnn.runtime.triton_scan import FINISH, JOIN, TOTALS
from flashrnn.tiling.triton_scan import TritonScanProblem, TritonScanTiling, cheapest, tilings

pytestmark = pytest.mark.usefixtures("own_packs")
OTHER = TritonScanTiling(16, 32, 512, 2)  # fits, and is not what the model likes


def problem_of(rows=8, T=4096, D=64, dtype=BFLOAT16, direction=FORWARD, kind=ATTENTION):
    return TritonScanProblem(kind, direction, dtype, False, rows, T, D)


def regenerated(name, widths) -> None:
    shipped = read(SHIPPED / f"{name}.json").sections[SCANS.name]
    again = SCANS.choices(scans.problems(widths), Device.named(name), shipped.rejected)
    assert again == {key: shipped.choices[key] for key in again}


def test_a_sample_is_what_is_chosen_again() -> None:
    regenerated("h100-sxm", (64,))
    regenerated("l4", (256,))


@pytest.mark.slow
def test_all_are_what_is_chosen_again() -> None:
    regenerated("a100-40-sxm", scans.WIDTHS)


def test_classes_choose_as_the_model_does() -> None:
    """Where the width and the rows are powers of two a pack and the model agree."""
    choices = SCANS.choices(scans.problems((64,)), H100)
    held = Pack(H100.fingerprint, {}, {SCANS.name: Section("test", choices)})
    for rows, T in ((1, 64), (8, 1024), (1, 65536), (64, 16384), (4096, 4096)):
        for dtype in (BFLOAT16, FLOAT32):
            problem = problem_of(rows, T, dtype=dtype, direction=BACKWARD)
            assert held.tiling(SCANS, problem) == cheapest(problem, H100), (rows, T)
    # rows in between are those of the next power of two; far above, as many as in the last class
    assert held.tiling(SCANS, problem_of(5)) == held.tiling(SCANS, problem_of(8))
    assert held.tiling(SCANS, problem_of(10**5)) == held.tiling(SCANS, problem_of(4096))
    assert held.tiling(SCANS, problem_of(T=2 * scans.LONGEST)) is None
    assert held.tiling(SCANS, problem_of(D=300)) is None
    assert held.tiling(SCANS, problem_of(kind=LINEAR)) is None


@pytest.mark.parametrize("name", GPUS)
def test_what_is_shipped_fits_and_says_so(name) -> None:
    """Every entry, for lengths and widths that are none of its own too."""
    gpu = Device.named(name)
    for rows, T, D in ((1, 65536, 1), (3, 64, 23), (30, 2048, 100), (5000, 8192, 256)):
        for dtype in GPU_BY_NAME.values():
            for direction in (FORWARD, BACKWARD):
                problem = problem_of(rows, T, D, dtype, direction)
                selected = triton_scan.select(problem, gpu)
                assert selected.tiling in tilings(problem, gpu)
                assert f"the pack {name}.json by the cost model" in selected.by


def test_it_is_used_where_nothing_was_tuned(tmp_path) -> None:
    problem = problem_of()
    assert triton_scan.select(problem, H100).tiling != OTHER
    sequential = replace(OTHER, t_per_chunk=4096)
    by_rows = ((8, OTHER), (None, sequential))
    mine(SCANS, tmp_path, {SCANS.key_of(problem): ((4096, by_rows),)})
    selected = triton_scan.select(problem, H100)
    assert selected.tiling == OTHER
    assert selected.by == "model-chosen, not measured: the pack h100-sxm.json by the test"
    assert triton_scan.select(problem_of(9), H100).tiling == sequential
    for other in (problem_of(T=8192), problem_of(D=32), problem_of(dtype=FLOAT32)):
        assert triton_scan.select(other, H100).tiling not in (OTHER, sequential)
    assert packs.lookup(SCANS, problem, replace(H100, sms=66)) is None
    options = {"batch": 2, "time": 4000, "heads": 4, "head_dim": 64, "dtype": "bfloat16"}
    kernel = scan_attention_family().gpu_tunables(options, H100)[0]
    assert kernel.default(H100) == OTHER.as_config()
    tuned = TritonScanTiling(16, 16, 256, 1)
    cache.remember_here(triton_scan.problem_key(problem), H100.fingerprint, tuned.as_config())
    assert triton_scan.select(problem, H100).tiling == tuned
    assert triton_scan.select(problem, H100).by.startswith("tuned")
    foreign = {"rows": 1}
    cache.remember_here(triton_scan.problem_key(problem), H100.fingerprint, foreign)
    with pytest.warns(CacheWarning, match="scan attention forward triton.*tune again"):
        assert triton_scan.select(problem, H100).tiling == OTHER


def test_a_call_on_the_gpu_takes_it(tmp_path, monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_scan, "device_of", lambda _: H100)
    mine(SCANS, tmp_path, {SCANS.key_of(problem_of()): ((None, ((None, OTHER),)),)})
    with FakeTensorMode():
        v = torch.empty(2, 4000, 4, 64, dtype=torch.bfloat16, device="cuda")
    problem = triton_scan_attention.problem_of(FORWARD, v, 2, 4000)
    assert triton_scan.plan_for(problem, v).tiling == OTHER
    # what the interpreter runs is the model's choice
    assert triton_scan.plan_for(problem, torch.empty(1)).tiling == SCANS.best(problem, H100)


WRONG = {
    "unexpected keyword": lambda t: t.replace('"num_warps"', '"warps"'),
    "does not fit": lambda t: t.replace("[16,32,512,2]", "[16,32,100,2]"),
    "is neither an integer nor": lambda t: t.replace("[16,32,512,2]", "[16,32,512,true]"),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_bad_pack_is_ignored_with_a_warning(why, tmp_path) -> None:
    path = mine(SCANS, tmp_path, {SCANS.key_of(problem_of()): ((None, ((None, OTHER),)),)})
    damaged = WRONG[why](path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.warns(CacheWarning, match=f"is ignored, the cost model chooses: .*{why}"):
        found = packs.lookup(SCANS, problem_of(), H100)
    assert found.tiling != OTHER
    assert "by the cost model" in found.by  # the shipped one


def test_what_has_a_fault_is_chosen_again() -> None:
    """A kernel is judged once, however long its chunks."""
    told = []

    def faults(kernels):
        for _, problem, chosen in kernels:
            yield "it spills" if chosen.num_warps == 1 and problem.width == 64 else ""

    asked = [p for p in scans.problems((32, 64)) if p.storage == BFLOAT16]
    pack = pack_check.by_report({SCANS.name: asked}, H100, {}, faults, lambda *at: told.append(at))
    made = pack.sections[SCANS.name]
    judged = [(SCANS.key_of(problem), tiling) for (_, problem, tiling), *_ in told]
    assert len(set(judged)) == len(judged)
    for key, choice in made.choices.items():
        warps = {t.num_warps for _, classes in choice for _, t in classes}
        assert (1 in warps) == key.endswith("32")
        assert all(t.num_warps == 1 for t in made.rejected.get(key, ()))
    assert made.choices == SCANS.choices(asked, H100, made.rejected)


def test_where_the_compiler_likes_nothing_the_model_has_its_way() -> None:
    problem = problem_of(rows=1, T=64, D=16)
    every = {SCANS.kernel_of(t) for t in tilings(problem, H100)}
    assert SCANS.choice(problem, H100, every) == SCANS.choice(problem, H100)


def test_each_kernel_of_a_tiling_is_compiled() -> None:
    problem = problem_of(rows=1, T=64)
    jobs = pack_check.jobs_of((SCANS, problem, OTHER), H100)
    kernels = [job.origin.gpu_tunables()[job.index] for job in jobs]
    assert [kernel.kernel for kernel in kernels] == [FINISH, TOTALS, JOIN]
    assert {kernel.problem_ for kernel in kernels} == {problem}


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_kernels_of_a_pack_spill_nothing(name) -> None:
    """A sample of what the compiler's report took part in: some problems' kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    gpu, shipped = Device.named(name), read(SHIPPED / f"{name}.json")
    assert shipped.sections[SCANS.name].chosen_by == pack_check.BY_REPORT
    for problem in scans.problems()[GPUS.index(name) :: 29]:
        choice = shipped.sections[SCANS.name].choices[SCANS.key_of(problem)]
        for kernel in {SCANS.kernel_of(t) for _, classes in choice for _, t in classes}:
            for job in pack_check.jobs_of((SCANS, problem, kernel), gpu):
                tunable = job.origin.gpu_tunables()[job.index]
                report = compiler_report.report(tunable.compile(job.config, gpu))
                assert not report.spilled, (problem, kernel)
                assert report.occupancy(gpu.architecture) > 0
