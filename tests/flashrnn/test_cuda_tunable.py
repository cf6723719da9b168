"""The CUDA kernels as autotune sees them; candidates run in csrc/simt's execution model here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cuda_race
import pytest
import torch
from cuda_stand_in import GPU, StandIn, install
from cuda_tilings import tiled
from problems import problem as tensors_of
from simt_driver import _cache

from autotune import cache, cli, tuner
from autotune.errors import MissingExtra
from autotune.registry import Origin
from autotune.space import GpuFamily, called
from flashrnn import families, flashrnn
from flashrnn.cells import gru, indrnn, lstm, peephole_lstm
from flashrnn.cuda_tunable import CudaKernel, kernels_for, runner_of
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, DIRECTIONS, GRID, INFERENCE, TRAINING
from flashrnn.errors import OptionError
from flashrnn.families import lstm_family
from flashrnn.passes.lower import lower
from flashrnn.runtime import cuda_kernels
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import BLOCK, SCHEDULES, schedule_of
from flashrnn.tiling.cuda_step import STEP, StepTiling
from flashrnn.tolerance import TF32_BOUND

EVERY = (*SCHEDULES, STEP)
OPTIONS = {
    "batch": 16, "time": 8, "heads": 1, "head_dim": 64, "dtype": "bfloat16", "tf32": False,
    "backend": "cuda", "device": "h100-sxm",
}  # fmt: skip


def problem_of(direction, D=64, cell=lstm, dtype=BFLOAT16, B=16) -> CudaProblem:
    return CudaProblem(lower(cell), direction, dtype, Dims(B, 8, 1, D))


@pytest.fixture
def stand_in(monkeypatch) -> type[StandIn]:
    return install(monkeypatch)


# Kernels that other tests compile too.
@pytest.mark.parametrize(
    ("cell", "direction", "dtype", "sizes", "schedule"),
    [
        (lstm, BACKWARD, BFLOAT16, (17, 3, 2, 48), BLOCK),
        (lstm, TRAINING, BFLOAT16, (17, 3, 2, 48), GRID),
        (gru, TRAINING, FLOAT16, (3, 4, 1, 13), CLUSTER),
        (peephole_lstm, BACKWARD, BFLOAT16, (17, 2, 1, 16), STEP),
        (lstm, TRAINING, FLOAT32, (3, 4, 2, 13), BLOCK),
        (gru, INFERENCE, BFLOAT16, (5, 2, 1, 24), BLOCK),
    ],
    ids=lambda x: str(getattr(x, "name", x)),
)
def test_a_candidate_is_checked(cell, direction, dtype, sizes, schedule, stand_in) -> None:
    problem = CudaProblem(lower(cell), direction, dtype, Dims(*sizes))
    tiling = StepTiling(64)
    if schedule != STEP:
        tiling = tiled(cell, direction, dtype, problem.dims, schedule)[1]
    runner = runner_of(problem, tiling, GPU, "cpu")
    check = runner.check()
    assert check.ok, str(check)
    assert (check.bound == TF32_BOUND) == (dtype == FLOAT32)
    bits = runner.results()
    full = runner._full.got()
    assert len(bits) == sum(x.numel() * x.element_size() for x in full.values())
    assert bits == runner.results()


def test_what_a_kernel_does_not_write_is_wrong(stand_in, monkeypatch) -> None:
    problem = CudaProblem(lower(lstm), TRAINING, BFLOAT16, Dims(17, 3, 2, 48))
    tiling = tiled(lstm, TRAINING, BFLOAT16, problem.dims, BLOCK)[1]
    runner = runner_of(problem, tiling, GPU, "cpu")
    launch = stand_in.launch
    monkeypatch.setattr(
        stand_in, "launch", lambda self, grid, given: launch(self, (grid[0] - 1, grid[1]), given)
    )
    assert not runner.check().ok
    errors = {found.what: found.error for found in runner._of(3).compare(tf32=False)}
    assert errors == {"states": math.inf, "last": math.inf}, "NaN was there before"


@pytest.mark.parametrize(
    ("schedule", "direction", "D"),
    [
        (BLOCK, BACKWARD, 64),
        (CLUSTER, TRAINING, 128),
        (GRID, TRAINING, 1024),
        (STEP, TRAINING, 4096),
    ],
)
def test_default_is_a_solution_and_predicted_to_launch(schedule, direction, D) -> None:
    """A batch that fills no tile: the run time's tilings are those of whole tiles."""
    problem = problem_of(direction, D, B=5)
    defaults = {kernel.schedule: kernel.default(GPU) for kernel in kernels_for([problem])}
    default = defaults.pop(schedule)
    assert list(defaults.values()) == [None] * 3, "no other schedule is used"
    kernel = CudaKernel(problem, schedule)
    solutions = [dict(s) for s in kernel.model(GPU).solutions()]
    assert default in solutions
    assert all(schedule_of(kernel.tiling(s)) == schedule for s in solutions)
    assert all(kernel.tiling(s).as_config() == s for s in solutions)
    predicted = kernel.predict(default, GPU)
    assert predicted.threads % 32 == 0 < predicted.registers <= 255
    assert kernel.cost(default, GPU) <= min(kernel.cost(s, GPU) for s in solutions)
    told = {BLOCK: "one block", CLUSTER: "a cluster of", GRID: "a grid of", STEP: "per step"}
    assert told[schedule] in kernel.describe(default)


def test_a_cell_without_a_product_has_no_launch_per_step() -> None:
    assert [k.schedule for k in kernels_for([problem_of(TRAINING, cell=indrnn)])] == [*SCHEDULES]


def test_a_longer_call_costs_more() -> None:
    for kernel in kernels_for([problem_of(BACKWARD)]):
        longer = CudaKernel(problem_of(BACKWARD), kernel.schedule)
        dims = replace(longer.problem_.dims, T=800)
        longer = replace(longer, problem_=replace(longer.problem_, dims=dims))
        config = next(iter(kernel.model(GPU).solutions()))
        assert longer.cost(config, GPU) == pytest.approx(100 * kernel.cost(config, GPU))
        assert (kernel.steps, longer.steps) == (8, 800)


def test_what_is_remembered_depends_on_the_kernels(monkeypatch) -> None:
    """On the text of all of them, whichever schedule won, and on nothing that they do not take."""
    keys = [kernel.problem() for kernel in kernels_for([problem_of(BACKWARD)])]
    assert keys[0]["kernel"] == f"{lstm.key} backward cuda"
    assert all(key == keys[0] for key in keys)
    assert CudaKernel(problem_of(BACKWARD, B=1), GRID).problem() == keys[0], "one tile of rows"
    assert CudaKernel(problem_of(BACKWARD, B=17), GRID).problem() != keys[0]
    texts = cuda_kernels.headers()
    more = {**texts, "cuda/exchange.hpp": texts["cuda/exchange.hpp"] + b"// another"}
    with monkeypatch.context() as m:
        m.setattr(cuda_kernels, "headers", lambda: more)
        assert keys[0] != CudaKernel(problem_of(BACKWARD), GRID).problem()
    source_of = cuda_kernels.source_of
    for kind in (StepTiling, type(tiled(lstm, BACKWARD, BFLOAT16, Dims(1, 1, 1, 16), GRID)[1])):

        def written(problem, tiling, kind=kind):
            return source_of(problem, tiling) + "//" * isinstance(tiling, kind)

        with monkeypatch.context() as m:
            m.setattr(cuda_kernels, "source_of", written)
            assert keys[0] != CudaKernel(problem_of(BACKWARD), GRID).problem()


def test_families_offer_their_kernels(monkeypatch) -> None:
    family = lstm_family()
    assert isinstance(family, GpuFamily)
    races = Origin("flashrnn.families:lstm_family", OPTIONS).rivals()
    assert [called(r) for r in races] == [
        f"lstm {d} cuda, block or cluster or grid or step" for d in DIRECTIONS
    ]
    both = Origin("flashrnn.families:lstm_family", {**OPTIONS, "backend": "both"}).rivals()
    triton = [f"lstm {d}, fused or alternating" for d in DIRECTIONS]
    assert [called(r) for r in both] == triton + [called(r) for r in races]
    without = {name: value for name, value in OPTIONS.items() if name != "backend"}
    assert [called(r) for r in Origin("flashrnn.families:lstm_family", without).rivals()] == triton
    with pytest.raises(OptionError, match=r"--backend cuda --dtype float32.*--tf32 allows"):
        family.gpu_tunables({**OPTIONS, "dtype": "float32"}, GPU)
    tunables = family.gpu_tunables({**OPTIONS, "dtype": "float32", "tf32": True}, GPU)
    assert tunables[0].problem()["dtype"] == "float32"

    def missing() -> str:
        raise MissingExtra("compiling CUDA kernels", "nvidia-cuda-nvrtc", "cuda")

    monkeypatch.setattr(families, "compiler_version", missing)
    with pytest.raises(MissingExtra, match="cuda"):
        family.gpu_tunables(OPTIONS, GPU)
    assert family.gpu_tunables(without, GPU), "Triton's kernels need no NVRTC"


def test_candidates_are_compiled_without_a_gpu(tmp_path: Path, capsys) -> None:
    pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")
    pytest.importorskip("triton", reason="Triton is not installed")
    path = tmp_path / "made.json"
    words = ["--backend", "cuda", "--device", "h100-sxm", "--head-dim", "32", "--top", "1"]
    assert cli.main(["compile", "elman", *words, "--jobs", "1", "--json", str(path)]) == 0
    assert "elman training cuda, block or cluster or grid or step" in capsys.readouterr().out
    made = json.loads(path.read_text())["tunables"]
    assert len(made) == len(DIRECTIONS)
    for race in made:
        schedules = {a["name"].rpartition(", ")[2] for a in race["attempts"]}
        assert schedules == set(EVERY), "the cheapest of each"
        for attempt in race["attempts"]:
            actual, predicted = attempt["actual"], attempt["predicted"]
            assert (attempt["failure"], actual["spill_store_bytes"]) == ("", 0)
            assert actual["shared_bytes"] == predicted["shared_bytes"]
            assert attempt["seconds"] == pytest.approx(attempt["estimated_seconds"])


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["run", "lstm", "--device", "cuda"], 1, "there is no GPU to use"),
        (["compile", "gru", "--device", "h100-sxm", "--dtype", "float32"], 2, "rounded to tf32"),
        (["compile", "gru", "--device", "h100-sxm", "--dtype", "float64"], 2, "float64"),
        (["compile", "slstm", "--device", "t400"], 2, "no GPU is called 't400'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_usage(words, status, told, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        found = cli.main([*words, "--backend", "cuda"])
    except SystemExit as end:  # argparse's own
        found = end.code
    assert found == status
    assert told in capsys.readouterr().err


def test_two_schedules_race_and_the_run_time_takes_the_winner(tmp_path, monkeypatch) -> None:
    """Compiled by NVRTC, checked and timed in the execution model, by autotune's processes."""
    pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")
    pytest.importorskip("triton", reason="Triton is not installed")
    (tmp_path / "simt").symlink_to(_cache())  # whose kernels are slow to compile
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(tuner, "ENOUGH_SECONDS", 0.1)
    race = Origin("cuda_race:family", {"device": "h100-sxm"})
    (result,) = tuner.tune_family(race, GPU, budget_seconds=240.0, top_k=1)
    fates = {t.description.partition(",")[0]: (t.status, t.reason) for t in result.trials}
    assert {name.split()[1] for name in fates} == {"block", "grid"}, "one block, a grid of ..."
    assert set(fates.values()) == {("timed", "")}, fates
    (entry,) = cache.entries()
    key = cuda_kernels.problem_key(cuda_race.PROBLEM)
    assert (entry.problem, entry.steps) == (key, 2)
    assert cache.step_seconds(key, GPU) == entry.seconds / 2
    # the loser of the race, written as if it had won: only what is remembered decides
    loser = next(t for t in result.trials if t.config != result.config)
    for config in (result.config, loser.config):
        cache.store(replace(entry, config=config))
        kind = install(monkeypatch)
        flashrnn(**tensors_of(lstm, 3, 2, 1, 16, torch.bfloat16), backend="cuda")
        assert [f.shape.cooperative for f in kind.made] == ["blocks" in config]
