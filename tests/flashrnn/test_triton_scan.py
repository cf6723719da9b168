"""Attention over every prefix by Triton's kernels, in its interpreter: every trap of the scan.

The sequential schedule and the chunk-parallel one, against the float64 definition.
"""

import pytest
import torch
from scan_problems import (
    assert_close,
    by_triton,
    cast,
    error,
    everything,
    problem,
    triton_tiling,
)

from flashrnn.attention import ScanState, attention_reduce, scan_attention, step
from flashrnn.runtime import triton_scan
from flashrnn.scan_reference import attention_reference as reference

pytest.importorskip("triton", reason="Triton is not installed")

INF = torch.inf
FLOAT32, HALVES = torch.float32, [torch.bfloat16, torch.float16]
# One chunk; several, with programs that share a head's channels.
SCHEDULES = {
    "sequential": {"d_per_program": 32},
    "chunks": {"t_per_chunk": 16, "d_per_program": 16},
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, poisoned):
    """What the kernels fill is full of NaN first."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch):
    with triton_tiling(monkeypatch, **SCHEDULES[request.param]):
        yield request.param


def check(p, bound=2e-6, outputs=slice(None), **options):
    got = everything(by_triton, *p, outputs, **options)
    assert_close(got, everything(reference, *cast(*p), outputs, **options), bound)
    return got


@pytest.mark.parametrize("reverse", [False, True])
def test_against_the_definition(schedule, reverse) -> None:
    check(problem(1, 37, 2, 19, dtype=FLOAT32), reverse=reverse)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 17, 1, 1), (1, 70, 1, 33), (3, 16, 3, 16)], ids=str)
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_more_sizes(schedule, size, state, reverse) -> None:
    check(problem(*size, dtype=FLOAT32, state=state), reverse=reverse)


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 1, 3, 5)], ids=str)
def test_one_step(size) -> None:
    check(problem(*size, dtype=FLOAT32, state=False))


@pytest.mark.parametrize("outputs", [slice(0, 1), slice(1, 2), slice(3, 4)], ids=str)
def test_gradients_of_some_results(schedule, outputs) -> None:
    check(problem(1, 20, 1, 19, dtype=FLOAT32), outputs=outputs)


@pytest.mark.parametrize("offsets", [[0, 3, 3, 40], [0, 0, 21, 21]], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences(schedule, offsets, reverse) -> None:
    p = problem(1, offsets[-1], 1, 5, G=len(offsets) - 1, dtype=FLOAT32)
    check(p, cu_seqlens=torch.tensor(offsets, dtype=torch.int32), reverse=reverse)


def masked(p, start: int, end: int):
    with torch.no_grad():
        p[0][:, start:end] = -INF
    return p


@pytest.mark.parametrize("span", [(0, 3), (0, 20), (14, 18), (16, 33), (0, 35)], ids=str)
def test_masked_scores(schedule, span) -> None:
    """An empty prefix gives 0; without a state, and without a gradient where all is masked."""
    p = masked(problem(1, 35, 1, 5, dtype=FLOAT32, state=False), *span)
    got = check(p, outputs=slice(0, 1))
    if span[0] == 0:
        assert (got["o"][:, : span[1]] == 0).all()
        assert (got["d_scores"][:, : span[1]] == 0).all()


def test_a_masked_sequence_leaves_the_state_as_it_was(schedule) -> None:
    s, v, state = masked(problem(2, 20, 1, 4, dtype=FLOAT32), 0, 20)
    for given in (state, ScanState.empty(2, 1, 4, v)):
        o, last = by_triton(s, v, given)
        assert all(torch.equal(a, b) for a, b in zip(last, given, strict=True))
        assert torch.allclose(o, given.output().unsqueeze(1).expand_as(o), rtol=1e-6)
    grads = torch.autograd.grad(by_triton(s, v, state)[1], state, state)
    for a, b in zip(grads, state, strict=True):  # d_m by way of terms that cancel
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("late", [8, 16, 31])
def test_a_late_large_score(schedule, late) -> None:
    """The maximum is each row's own, not the block's or the chunk's."""
    s, v, _ = problem(1, 34, 1, 13, dtype=FLOAT32, state=False)
    with torch.no_grad():
        s.zero_()
        s[:, late] = 120
    got, exact = everything(by_triton, s, v, None), everything(reference, *cast(s, v, None))
    assert_close({k: got[k] for k in ("o", "d_v")}, {k: exact[k] for k in ("o", "d_v")}, 1e-6)


@pytest.mark.parametrize("offset", [1000, -1000])
def test_scores_far_from_zero(schedule, offset) -> None:
    s, v, _ = problem(1, 40, 1, 12, dtype=FLOAT32, state=False)
    with torch.no_grad():
        s += offset
    check((s, v, None), 3e-6)


def test_nearly_one_hot_rows_and_a_constant_value(schedule) -> None:
    s, v, _ = problem(1, 40, 1, 12, dtype=FLOAT32, state=False, scale=1000.0)
    got, exact = everything(by_triton, s, v, None), everything(reference, *cast(s, v, None))
    for name in ("o", "d_v", "m", "u", "w"):
        assert error(got[name], exact[name]) < 1e-6, name
    # the terms that cancel in d_scores are as large as v * d_o
    assert (got["d_scores"].double() - exact["d_scores"]).abs().max() < 2e-4
    with torch.no_grad():
        v.fill_(3.0)
    grads = everything(by_triton, s, v, None, slice(0, 1))
    assert grads["d_scores"].abs().max() < 3 * 12 * 40 * 2**-23


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_long_sequence_in_float32(scale, monkeypatch) -> None:
    s, v, _ = problem(1, 65536, 1, 4, dtype=FLOAT32, state=False, scale=scale)
    d = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    s64, v64, _ = cast(s, v, None)
    p = (s64 - s64.amax(1, keepdim=True).detach()).exp().unsqueeze(-1)
    exact = (p * v64).cumsum(1) / p.cumsum(1)
    with triton_tiling(monkeypatch, 128, 16, 16384):
        got = by_triton(s, v)[0]
        d_s, d_v = torch.autograd.grad(got, (s, v), d)
    exact_s, exact_v = torch.autograd.grad(exact, (s64, v64), d.double())
    assert error(got.detach(), exact.detach()) < 1e-6
    assert error(d_v, exact_v) < 1e-6
    assert error(d_s, exact_s) < 1e-6


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sixteen_bits_are_rounded_once(schedule, dtype) -> None:
    p = problem(1, 33, 1, 21, dtype=dtype)
    got, exact = everything(by_triton, *p), everything(reference, *cast(*p))
    eps = torch.finfo(dtype).eps
    assert error(got["o"], exact["o"]) <= 0.51 * eps
    assert_close({k: got[k] for k in "muw"}, {k: exact[k] for k in "muw"}, 1e-6)
    assert error(got["d_v"], exact["d_v"]) <= 0.51 * eps
    for name in ("d_m0", "d_u0", "d_w0", "d_scores"):  # these read o as it was stored
        assert error(got[name], exact[name]) <= 2 * eps, name


def test_deterministic_and_of_any_strides(schedule) -> None:
    s, v, state = problem(2, 20, 1, 8, dtype=FLOAT32)
    expected = everything(by_triton, s, v, state)
    major = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (s, v)]
    gaps = [torch.stack((x.detach(), x.detach()), -1)[..., 0] for x in (s, v)]
    for a, b in (major, gaps, (s.detach(), v.detach())):
        got = everything(by_triton, a.requires_grad_(), b.requires_grad_(), state)
        assert all(torch.equal(got[name], expected[name]) for name in got)
    assert by_triton(*major)[0].stride() == major[1].stride()


def test_many_to_one_and_streaming(schedule) -> None:
    s, v, state = problem(1, 20, 1, 7, dtype=FLOAT32)
    o, last = by_triton(s, v, state)
    reduced, same = attention_reduce(s, v, state, backend="triton")
    assert error(reduced, o[:, -1]) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(last, same, strict=True))
    d = torch.randn_like(reduced)
    got = torch.autograd.grad(reduced, (s, v, *state), d)
    exact = torch.autograd.grad(reference(s, v, state)[0][:, -1], (s, v, *state), d)
    for a, b in zip(got, exact, strict=True):
        assert (a - b).abs().max() < 2e-6
    if schedule == "sequential":
        for t in range(3):
            o_t, state = step(state, s[:, t], v[:, t], backend="triton")
            assert error(o_t.detach(), o[:, t].detach()) < 2e-6


@pytest.mark.parametrize("T", [0, 2])
def test_nothing_to_do(T) -> None:
    s, v, state = problem(2, T, 1, 4, dtype=FLOAT32)
    check((s, v, state), 1e-6)
    o, last = by_triton(s[:0], v[:0])
    assert (o.shape, last.w.shape) == ((0, T, 1, 4), (0, 1, 4))


def test_second_derivatives_come_from_the_reference() -> None:
    s, v, _ = problem(1, 3, 1, 2, dtype=FLOAT32, state=False)

    def second(backend):
        o = scan_attention(s, v, backend=backend)[0]
        (d_s,) = torch.autograd.grad(o.square().sum(), s, create_graph=True)
        return torch.autograd.grad(d_s.square().sum(), v)[0]

    torch.testing.assert_close(second("triton"), second("reference"))


@pytest.mark.slow
def test_opcheck() -> None:
    s, v, state = problem(1, 5, 2, 3, dtype=FLOAT32)
    ops = torch.ops.flashrnn
    for offsets in (None, torch.tensor([0, 5])):
        rest = (offsets, True, True)
        torch.library.opcheck(ops.triton_scan_attention, (s, v, *state, *rest))
        plain = [x.detach() for x in (s, v, *state)]
        torch.library.opcheck(ops.triton_scan_attention_training, (*plain, *rest))
        o, *last, saved = ops.triton_scan_attention_training(*plain, *rest)
        arguments = (*plain, offsets, True, o, *last, saved, torch.ones_like(o), *last)
        torch.library.opcheck(ops.triton_scan_attention_backward, arguments)


def test_the_schedule_follows_from_the_length_and_the_rows() -> None:
    from autotune.device import Device
    from flashrnn.dtypes import GPU_BY_NAME
    from flashrnn.emit.scan import ATTENTION
    from flashrnn.tiling.triton_scan import TritonScanProblem, cheapest

    def chunks(gpu: str, rows: int, T: int, direction="forward") -> int:
        p = TritonScanProblem(ATTENTION, direction, GPU_BY_NAME["float32"], False, rows, T, 64)
        return -(-T // cheapest(p, Device.named(gpu)).t_per_chunk)

    assert chunks("h100-sxm", 4096, 4096) == 1
    assert chunks("h100-sxm", 1, 64) == 1
    assert chunks("h100-sxm", 8, 65536) >= 16
    assert chunks("l4", 32, 16384) < chunks("h100-sxm", 32, 16384)


def test_a_plan_serves_lengths_up_to_the_next_power_of_two(monkeypatch) -> None:
    monkeypatch.setattr(triton_scan, "_plans", {})
    for T in (65, 70):
        with torch.no_grad():
            by_triton(*problem(1, T, 1, 16, dtype=FLOAT32, state=False))
    assert len(triton_scan._plans) == 1
