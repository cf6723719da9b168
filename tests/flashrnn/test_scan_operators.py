"""The scans as torch operators, their tilings, what the tuner is handed, and bad input."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scan_problems import problem

from autotune.device import Device
from flashrnn import scan_attention
from flashrnn.attention import ScanState, attention_reduce, step
from flashrnn.attention.family import ScanKernel, scan_attention_family
from flashrnn.dtypes import FLOAT32, SCANNED
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION, LINEAR
from flashrnn.errors import BackendError, DtypeError, ShapeError
from flashrnn.runtime import scan_launch
from flashrnn.tiling import scan
from flashrnn.tiling.scan import ScanProblem

DEVICE = Device.current()
WRONG = """struct Wrong : Simd<Real, vector_bytes> {
  static Vec fma(Vec a, Vec b, Vec c) { return a * b - c; }
};
"""


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(every, packed) -> None:
    offsets = torch.tensor([0, 2, 5]) if packed else None
    s, v, state = problem(1, 5, 2, 3, G=2 if packed else 1)
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.scan_attention, (s, v, *state, offsets, True, every))
    s, v, *parts = (x.detach() for x in (s, v, *state))
    if not packed:  # slots between packed sequences are never written
        torch.library.opcheck(ops.scan_attention_training, (s, v, *parts, offsets, False, every))
    o, *last, saved = ops.scan_attention_training(s, v, *parts, offsets, False, every)
    d_o = torch.ones_like(o) if every else None
    for d in (last, (None, None, None)):
        arguments = (s, v, *parts, offsets, False, o, *last, saved, d_o, *d)
        if d_o is not None or d is last:
            torch.library.opcheck(ops.scan_attention_backward, arguments)


def test_compile_without_graph_breaks() -> None:
    def loss(s, v):
        o, last = scan_attention(s.tanh(), v)
        return o.square().sum() + last.w.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    s, v, _ = problem(2, 5, 2, 3)
    expected = torch.autograd.grad(loss(s, v), (s, v))
    for a, b in zip(torch.autograd.grad(compiled(s, v), (s, v)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives() -> None:
    s, v, _ = problem(1, 3, 1, 2)
    assert torch.autograd.gradgradcheck(lambda s, v: scan_attention(s, v)[0], (s, v))


def test_bad_arguments() -> None:
    s, v, state = problem(2, 4, 3, 5)
    with pytest.raises(ShapeError, match=r"\(2, 4, 3, 5\)"):
        scan_attention(s[:, :3], v)
    with pytest.raises(DtypeError, match="float32"):
        scan_attention(s.float(), v)
    with pytest.raises(DtypeError, match=r"m of the state is torch.float32"):
        scan_attention(s, v, ScanState(*(x.float() for x in state)))
    with pytest.raises(ShapeError, match=r"w of the state"):
        scan_attention(s, v, (state.m, state.u, state.w[..., :4]))
    with pytest.raises(ShapeError, match="B = 1"):
        scan_attention(s, v, cu_seqlens=torch.tensor([0, 4]))
    for wrong in ([0, 3], [1, 4], [0, 3, 2, 4]):
        with pytest.raises(ShapeError, match=r"T = 4"):
            attention_reduce(s[:1], v[:1], cu_seqlens=torch.tensor(wrong))
    with pytest.raises(DtypeError, match="cu_seqlens"):
        scan_attention(s[:1], v[:1], cu_seqlens=torch.tensor([0.0, 4.0]))
    with pytest.raises(BackendError, match="'gpu'"):
        scan_attention(s, v, backend="gpu")
    with pytest.raises(ShapeError, match="s_t"):
        step(None, s, v)
    with pytest.raises(DtypeError, match="int64"):
        scan_attention(s.long(), v)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([ATTENTION, LINEAR]),
    st.sampled_from([FORWARD, BACKWARD]),
    st.sampled_from(sorted(SCANNED)),
    st.integers(1, 300),
    st.integers(0, 100_000),
    st.integers(1, 5000),
    st.integers(1, 300),
    st.integers(1, 64),
    st.sampled_from(DEVICE.isas),
)
@example(LINEAR, FORWARD, "bfloat16", 1, 405, 432, 1, 28, DEVICE.isas[0])  # few blocks of time
def test_every_problem_has_a_tiling_that_fits(
    kind, direction, dtype, sequences, T, columns, width, threads, isa
) -> None:
    device = DEVICE.with_isa(isa)
    width = width if kind == ATTENTION else 1
    p = ScanProblem(kind, direction, SCANNED[dtype], False, sequences, T, columns, width, threads)
    t = scan.default(p, device)
    lanes = device.vector_bytes // p.real.bytes
    assert t.t_per_chunk % scan.BLOCK_ROWS == 0 or t.t_per_chunk >= T
    assert t.t_per_chunk >= 1
    assert t.heads_per_panel * t.vectors_per_panel <= scan.MOST_UNROLLED
    assert kind == ATTENTION or t.columns_per_core % lanes == 0 or t.columns_per_core >= columns
    assert t.heads_per_panel == 1 or t.vectors_per_panel * lanes == width
    assert t.columns_per_core >= 1


def test_the_schedule_follows_from_the_length_and_the_threads() -> None:
    """One pass where rows keep every thread busy or work is short; else heads, then chunks."""

    def chosen(sequences, T, N, threads):
        p = ScanProblem(ATTENTION, FORWARD, FLOAT32, False, sequences, T, N, 64, threads)
        t = scan.default(p, DEVICE)
        return -(-N // t.columns_per_core), -(-T // t.t_per_chunk)

    assert chosen(1, 64, 8, 16) == (1, 1)
    assert chosen(16, 65536, 8, 4)[1] == 1
    groups, chunks = chosen(1, 65536, 1, 4)
    assert groups == 1 and chunks >= 4
    assert chosen(1, 65536, 8, 2)[1] == 1


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_instructions_fetch_ahead_by_tuning_alone(direction) -> None:
    """Whether it pays differs between processors; where it does each tensor's lines come once."""
    p = ScanProblem(ATTENTION, direction, FLOAT32, False, 1, 65536, 8, 64, 1)
    tiling = scan.default(p, DEVICE)
    assert "bytes_ahead = 0" in scan_launch.source_of(p, tiling, DEVICE)
    ahead = replace(tiling, fetch_ahead=1)
    tried = sorted(scan.model(p, DEVICE).solutions(), key=lambda c: scan.cost(c, p, DEVICE))
    assert ahead.as_config() in tried
    assert any(c["fetch_ahead"] for c in tried[:12]), "the tuner times the twelve cheapest"
    bytes_ahead = 1536 if direction == FORWARD else 512
    assert f"bytes_ahead = {bytes_ahead}" in scan_launch.source_of(p, ahead, DEVICE)
    linear = ScanProblem(LINEAR, direction, FLOAT32, False, 1, 1 << 20, 512, 1, 1)
    assert all(not s["fetch_ahead"] for s in scan.model(linear, DEVICE).solutions())


@pytest.mark.parametrize("direction", [0, 1])
def test_the_check_passes_a_right_kernel_and_catches_a_wrong_one(direction, monkeypatch) -> None:
    options = {
        "batch": 2, "time": 100, "heads": 2, "head_dim": 16, "dtype": "float32", "threads": 1,
    }  # fmt: skip
    tunable = scan_attention_family().tunables(options)[direction]
    assert isinstance(tunable, ScanKernel)
    config = tunable.default(DEVICE)
    assert config in list(tunable.model(DEVICE).solutions())
    assert tunable.cost(config, DEVICE) > 0
    runner = tunable.load(config)
    assert runner.check().ok, str(runner.check())
    runner.run()
    source = scan_launch.source_of
    monkeypatch.setattr(
        scan_launch,
        "source_of",
        lambda *a: (
            source(*a)
            .replace("<Simd<Real, vector_bytes>", "<Wrong")
            .replace("using Kernel", WRONG + "using Kernel")
        ),
    )
    assert not tunable.load(config).check().ok


def test_the_family_compares_with_an_eager_composite() -> None:
    options = {"batch": 1, "time": 50, "heads": 2, "head_dim": 5, "dtype": "float32", "threads": 1}
    comparisons = scan_attention_family().comparisons(options)
    assert [c.label for c in comparisons] == ["forward", "forward and backward"]
    for c in comparisons:
        results = [c.ours(), c.theirs()]
        results = [x if isinstance(x, tuple) else (x,) for x in results]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_tuned_tiling_is_used(monkeypatch, tmp_path) -> None:
    from autotune import cache

    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    scan_launch._plans.clear()
    arguments = (ATTENTION, FORWARD, FLOAT32, False, 1, 70, 2, 16)
    plan = scan_launch.plan_for(*arguments)
    assert not plan.tuned
    other = replace(plan.tiling, streaming=1 - plan.tiling.streaming)
    cache.remember_here(
        scan_launch.problem_key(plan.problem), DEVICE.fingerprint, other.as_config()
    )
    plan = scan_launch.plan_for(*arguments)
    assert plan.tuned and plan.tiling == other
