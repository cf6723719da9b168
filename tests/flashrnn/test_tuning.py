"""The tiling model, its cost, and what the tuner is handed."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import problem

from autotune import cache
from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import cells, flashrnn
from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BY_NAME, FLOAT32
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.families import elman_family, gru_family, lstm_family, slstm_family
from flashrnn.passes.lower import lower
from flashrnn.runtime import kernels
from flashrnn.runtime.toolchain import source_directory
from flashrnn.tiling import cpu
from flashrnn.tiling.cpu import CpuProblem, CpuTiling
from flashrnn.tunable import CpuKernel

DEVICE = Device.current()


def cpu_problem(direction=FORWARD, B=4, T=6, N=1, D=24, dtype=FLOAT32, threads=1) -> CpuProblem:
    return CpuProblem(lower(lstm), direction, dtype, Dims(B, T, N, D), threads)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([FORWARD, BACKWARD]),
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 5000),
    st.sampled_from(sorted(BY_NAME)),
    st.integers(1, 64),
    st.sampled_from(DEVICE.isas),
)
def test_every_problem_has_a_tiling_that_fits(direction, B, N, D, dtype, threads, isa) -> None:
    device = DEVICE.with_isa(isa)
    p = cpu_problem(direction, B, 5, N, D, BY_NAME[dtype], threads)
    tiling = cpu.default(p, device)
    lanes = device.vector_bytes // p.dtype.bytes
    vectors = tiling.d_per_register // lanes
    assert tiling.d_per_register % lanes == 0
    assert 1 <= tiling.b_per_register <= max(tiling.b_per_core, cpu.TYPICAL_ROWS)
    assert 1 <= tiling.b_per_core <= max(B, 1)
    assert tiling.as_config() in list(cpu.model(p, device).solutions())
    sums = (4 if direction == FORWARD else 1) * tiling.b_per_register * vectors
    assert sums < device.vector_registers
    items = -(-B // tiling.b_per_core) * N
    assert items >= min(threads, B * N)


def test_batch_sizes_share_a_kernel() -> None:
    tiles = {
        (t.b_per_register, t.d_per_register)
        for B in (2, 3, 7, 16, 31, 64, 200)
        for t in [cpu.default(cpu_problem(B=B, D=64), DEVICE)]
    }
    assert len(tiles) == 1


def with_avx512(**facts):
    return replace(DEVICE, isa="avx512", vector_bytes=64, vector_registers=32, **facts)


def test_rows_share_what_the_first_cache_holds() -> None:
    """Where one row's tile as wide as the registers admit would read R from the second for each."""
    wide = with_avx512(
        fma_per_cycle=2.0, loads_per_cycle=2.0, l1_bytes=48 << 10, l2_bytes=2 << 20,
        l2_bytes_per_cycle=48.0,
    )  # fmt: skip
    for name in ("gru", "lstm"):
        for D in (256, 512, 768):
            p = replace(cpu_problem(B=64, D=D), program=lower(getattr(cells, name)))
            tile = cpu.default(p, wide)
            stretch = cpu.stretch_terms(64) * tile.d_per_register * p.accumulated * 4
            assert tile.b_per_register > 2
            assert 2 * stretch <= wide.l1_bytes


def test_panels_of_one_row_stay_in_the_first_cache() -> None:
    """Where all of R does not fit, the last panel of a step does, with which the next begins."""
    wide = with_avx512(
        fma_per_cycle=1.0, loads_per_cycle=1.0, l1_bytes=32 << 10, l2_bytes=1 << 20,
        l2_bytes_per_cycle=30.0,
    )  # fmt: skip
    p = replace(cpu_problem(B=1, D=64), program=lower(cells.lstm))
    tile = cpu.default(p, wide)
    assert 64 * tile.d_per_register * p.accumulated * 4 <= cpu.KEPT * wide.l1_bytes


def test_the_model_knows_the_kernels_stretch() -> None:
    panels = (source_directory() / "cpu" / "panels.hpp").read_text(encoding="utf-8")
    found = re.search(r"stretch = sizeof\(typename S::Vec\) > (\d+) \? (\d+) : (\d+);", panels)
    assert found is not None
    widest, beyond, others = map(int, found.groups())
    for vector_bytes in (16, 32, 64):
        expected = beyond if vector_bytes > widest else others
        assert cpu.stretch_terms(vector_bytes) == expected


def test_cost_grows_with_work() -> None:
    p = cpu_problem()
    config = cpu.default(p, DEVICE).as_config()
    base = cpu.cost(config, p, DEVICE)
    for bigger in (cpu_problem(T=12), cpu_problem(D=48), cpu_problem(N=2)):
        assert cpu.cost(config, bigger, DEVICE) > base


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_every_feasible_tiling_is_right(direction) -> None:
    """The tuner may choose any of them."""
    p = cpu_problem(direction, B=5, D=20)
    tunable = CpuKernel(p)
    seen = set()
    for config in cpu.model(p, DEVICE).solutions():
        if config["b_per_core"] in (2, 5):
            seen.add((config["b_per_register"], config["d_per_register"]))
            assert tunable.load(config).check().ok, config
    assert len(seen) >= 3


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_the_check_catches_a_wrong_kernel(direction, monkeypatch) -> None:
    emit = kernels.emit_kernel

    def wrong(*args, **kwargs):
        text = emit(*args, **kwargs)
        return text.replace("math::tanh<S>", "math::sigmoid<S>").replace("d_next[1]", "d_next[0]")

    p = cpu_problem(direction, B=3, D=11)
    monkeypatch.setattr(kernels, "emit_kernel", wrong)
    monkeypatch.setattr(kernels, "_plans", {})
    tiling = CpuTiling(1, DEVICE.vector_bytes // 4, 3)
    if direction == BACKWARD:  # what it reads of the forward pass stays right
        monkeypatch.setattr(kernels, "emit_kernel", emit)
        kernels.plan_for(lstm, FORWARD, FLOAT32, p.dims, torch.get_num_threads())
        monkeypatch.setattr(kernels, "emit_kernel", wrong)
    assert not CpuKernel(p).load(tiling.as_config()).check().ok


def test_a_tuned_tiling_is_used_at_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_plans", {})
    threads = torch.get_num_threads()
    arguments = {k: v.detach() for k, v in problem(lstm, 5, 3, 1, 20, torch.float32).items()}
    before = flashrnn(**arguments)[0]
    dims = Dims(5, 3, 1, 20)
    assert not kernels.plan_for(lstm, FORWARD, FLOAT32, dims, threads).tuned
    p = cpu_problem(B=5, T=3, D=20, threads=threads)
    other = CpuTiling(1, DEVICE.vector_bytes // 4, 1)
    cache.remember_here(kernels.problem_key(p), DEVICE.fingerprint, other.as_config())
    plan = kernels.plan_for(lstm, FORWARD, FLOAT32, dims, threads)
    assert plan.tuned
    assert plan.tiling == other
    assert torch.equal(flashrnn(**arguments)[0], before), "a tiling never changes the result"


def test_a_tiling_of_another_version_is_ignored_with_a_warning(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_plans", {})
    p = cpu_problem(B=5, T=3, D=20, threads=1)
    cache.remember_here(kernels.problem_key(p), DEVICE.fingerprint, {"b_per_register": 1})
    with pytest.warns(CacheWarning, match="without 'd_per_register'"):
        assert not kernels.plan_for(lstm, FORWARD, FLOAT32, p.dims, 1).tuned


def test_the_family_reads_its_options() -> None:
    options = {"batch": 3, "time": 4, "heads": 2, "head_dim": 5, "dtype": "float64", "threads": 2}
    forward, backward = lstm_family().tunables(options)
    assert (forward.name, backward.name) == ("lstm forward", "lstm backward")
    known = forward.problem()
    assert (known["B"], known["N"], known["D"], known["threads"]) == (3, 2, 5, 2)
    assert known != backward.problem()
    comparisons = lstm_family().comparisons(options)
    assert {c.peer for c in comparisons} == {"2 × torch.nn.LSTM(5)", "torch.nn.LSTM(10), one head"}
    for c in comparisons:
        c.ours()
        c.theirs()


@pytest.mark.parametrize("family", [gru_family, elman_family, slstm_family])
def test_every_family_compares_with_a_peer(family) -> None:
    options = {"batch": 5, "time": 3, "heads": 1, "head_dim": 6, "dtype": "float32", "threads": 1}
    for tunable in family().tunables(options):
        assert tunable.load(tunable.default(DEVICE)).check().ok
    comparisons = family().comparisons(options)
    assert comparisons
    for c in comparisons:
        c.ours()
        c.theirs()
