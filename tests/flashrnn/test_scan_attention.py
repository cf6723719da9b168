"""Attention over every prefix: kernels against the definition, and every way to get it wrong."""

import pytest
import torch
from scan_problems import (
    DOUBLE,
    assert_close,
    cast,
    error,
    everything,
    plain,
    problem,
    random_state,
    tiling,
)

from flashrnn.attention import ScanState, attention_reduce, merge, scan_attention, step
from flashrnn.scan_reference import attention_reference as reference

INF = torch.inf
HALVES = [torch.bfloat16, torch.float16]


pytestmark = pytest.mark.usefixtures("poisoned")

SIZES = [
    (1, 1, 1, 1),
    (2, 7, 3, 5),
    (1, 64, 1, 16),
    (3, 65, 2, 23),
    (2, 130, 5, 17),
    (1, 200, 40, 3),
    (2, 66, 9, 32),  # four heads a panel of AVX-512, and one left
    (1, 70, 11, 8),  # eight, and three left
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_against_the_definition(size, reverse, state) -> None:
    p = problem(*size, state=state)
    got = everything(plain, *p, reverse=reverse)
    assert_close(got, everything(reference, *p, reverse=reverse), 1e-13)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("outputs", [slice(0, 1), slice(1, 2), slice(3, 4), slice(1, 4)], ids=str)
def test_gradients_of_some_results(outputs, reverse) -> None:
    p = problem(2, 70, 3, 9)
    got = everything(plain, *p, outputs, reverse=reverse)
    assert_close(got, everything(reference, *p, outputs, reverse=reverse), 1e-13)


OFFSETS = [[0, 3, 3, 68, 70, 200], [0, 200], [0, 0, 200, 200]]


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences(offsets, reverse) -> None:
    cu = torch.tensor(offsets, dtype=torch.int32)
    p = problem(1, 200, 3, 9, G=len(offsets) - 1)
    got = everything(plain, *p, cu_seqlens=cu, reverse=reverse)
    assert_close(got, everything(reference, *p, cu_seqlens=cu, reverse=reverse), 1e-13)


@pytest.mark.parametrize("T", [0, 1])
def test_an_empty_batch_and_an_empty_sequence(T) -> None:
    s, v, state = problem(2, T, 3, 4)
    got = everything(plain, s, v, state)
    assert_close(got, everything(reference, s, v, state), 1e-14)
    o, last = plain(s[:0], v[:0])
    assert (o.shape, last.w.shape) == ((0, T, 3, 4), (0, 3, 4))


def masked(p, start: int, end: int):
    s, v, state = p
    with torch.no_grad():
        s[:, start:end] = -INF
    return s, v, state


@pytest.mark.parametrize("span", [(0, 3), (0, 80), (60, 70), (80, 90), (0, 90)], ids=str)
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("chunk", [64, 128])
def test_masked_scores(span, state, chunk, monkeypatch) -> None:
    p = masked(problem(2, 90, 2, 5, state=state), *span)
    with tiling(monkeypatch, t_per_chunk=chunk):
        got = everything(plain, *p, outputs=slice(0, 1))
    assert_close(got, everything(reference, *p, outputs=slice(0, 1)), 1e-13)
    if not state and span[0] == 0:
        assert (got["o"][:, : span[1]] == 0).all()
        assert (got["d_scores"][:, : span[1]] == 0).all()
    with tiling(monkeypatch, t_per_chunk=chunk):
        got = everything(plain, *p)
    assert all(x.isfinite().all() for name, x in got.items() if name != "m")


def test_a_masked_sequence_leaves_the_state_as_it_was() -> None:
    s, v, state = masked(problem(2, 70, 3, 4), 0, 70)
    for given in (state, ScanState.empty(2, 3, 4, v)):
        o, last = scan_attention(s, v, given)
        assert all(torch.equal(a, b) for a, b in zip(last, given, strict=True))
        assert torch.allclose(o, given.output().unsqueeze(1).expand_as(o), rtol=1e-15)


@pytest.mark.parametrize("span", [None, (0, 2), (2, 4), (0, 6)], ids=str)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"cu": [0, 2, 2, 6]}], ids=str)
def test_gradcheck(span, options) -> None:
    options = dict(options)
    cu = options.pop("cu", None)
    if cu is not None:
        options["cu_seqlens"] = torch.tensor(cu)
    s, v, state = problem(1, 6, 2, 3, G=3 if cu else 1)
    mask = torch.zeros(1, 6, 2, dtype=torch.bool)
    if span:
        mask[:, span[0] : span[1]] = True

    def run(s, v, *parts):
        o, last = scan_attention(s.masked_fill(mask, -INF), v, ScanState(*parts), **options)
        return o, *last

    assert torch.autograd.gradcheck(run, (s, v, *state))

    def without_state(s, v):
        return scan_attention(s.masked_fill(mask, -INF), v, **options)[0]

    assert torch.autograd.gradcheck(without_state, (s, v))


def test_gradcheck_over_chunks(monkeypatch) -> None:
    s, v, state = problem(1, 130, 1, 2)
    with tiling(monkeypatch, t_per_chunk=64, threads=2):
        torch.autograd.gradcheck(
            lambda s, v, *p: scan_attention(s, v, ScanState(*p))[0], (s, v, *state), fast_mode=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("late", [0, 8, 63, 64, 100])
def test_a_late_large_score(late, dtype) -> None:
    """The maximum is each row's own, not the chunk's."""
    s, v, _ = problem(1, 130, 1, 13, dtype=dtype, state=False)
    with torch.no_grad():
        s.zero_()
        s[:, late] = 120
    got, exact = everything(plain, s, v, None), everything(reference, *cast(s, v, None))
    if dtype == DOUBLE:
        assert_close(got, exact, 1e-12)
    assert_close({k: got[k] for k in ("o", "d_v")}, {k: exact[k] for k in ("o", "d_v")}, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("N", [1, 2, 3, 4, 8, 16, 20, 40])
def test_rows_that_change_the_scale(N, reverse, monkeypatch) -> None:
    """Scores that rise, each head at its pace: weights are taken relative to others every few rows.

    Rows that share a vector, that fill some, and that leave a part; whole passes and chunks.
    """
    s, v, state = problem(2, 150, N, 9)
    with torch.no_grad():
        pace = torch.tensor([0.0, 0.3, 5.0, -1.0, 1.0])[torch.arange(N) % 5]
        s += pace * torch.arange(150).unsqueeze(-1)
        s[:, 30, ::3] = -INF
        s[0, 70] = s[0, :70].amax(0) + 4  # as much as leaves the scale as it is
        s[1, 70] = s[1, :70].amax(0) + 4.5
    exact = everything(reference, s, v, state, reverse=reverse)
    assert_close(everything(plain, s, v, state, reverse=reverse), exact, 1e-12)
    with tiling(monkeypatch, t_per_chunk=64, columns_per_core=min(N, 3), threads=2):
        assert_close(everything(plain, s, v, state, reverse=reverse), exact, 1e-12)
    single = cast(s, v, state, torch.float32)
    exact = everything(reference, *cast(*single), reverse=reverse)
    got = everything(plain, *single, reverse=reverse)
    for name in ("o", "m", "u", "w", "d_v"):
        assert error(got[name], exact[name], floor=1.0) < 2e-6, name


@pytest.mark.parametrize("score", [INF, torch.nan], ids=str)
@pytest.mark.parametrize("N", [1, 3, 4, 8, 12])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_score_without_a_value(N, reverse, score) -> None:
    """It is NaN from there on in its own head, as by the definition, and nowhere else."""
    s, v, _ = problem(1, 70, N, 3, dtype=torch.float32, state=False)
    s = s.detach()
    s[0, 66, N // 2] = score
    o, last = scan_attention(s, v, reverse=reverse)
    exact, exact_last = reference(s, v, reverse=reverse)
    assert torch.equal(o.isnan(), exact.isnan())
    assert error(o.nan_to_num(0), exact.nan_to_num(0)) < 1e-6
    for ours, theirs in zip(last, exact_last, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(last.m.isinf(), exact_last.m.isinf())


def test_cumsum_of_exponentials_is_wrong() -> None:
    """What people write first: kept here so that nobody takes it for the scan."""
    s = torch.zeros(1, 9, 1)
    s[:, 8] = 120
    v = torch.randn(1, 9, 1, 4)
    exact = reference(s.double(), v.double())[0]
    unscaled = (s - s.cummax(1).values).exp().unsqueeze(-1)
    assert error((unscaled * v).cumsum(1) / unscaled.cumsum(1), exact) > 0.1
    shifted = (s - s.max()).exp().unsqueeze(-1)
    assert ((shifted * v).cumsum(1) / shifted.cumsum(1)).isnan().any()
    assert error(scan_attention(s, v)[0], exact) < 1e-6


@pytest.mark.parametrize("offset", [1000, -1000])
def test_scores_far_from_zero(offset) -> None:
    s, v, _ = problem(2, 100, 2, 12, dtype=torch.float32, state=False)
    with torch.no_grad():
        s += offset
    got, exact = everything(plain, s, v, None), everything(reference, *cast(s, v, None))
    assert_close(got, exact, 3e-6)


def test_nearly_one_hot_rows() -> None:
    s, v, _ = problem(2, 100, 2, 12, dtype=torch.float32, state=False, scale=1000.0)
    got, exact = everything(plain, s, v, None), everything(reference, *cast(s, v, None))
    for name in ("o", "d_v", "m", "u", "w"):
        assert error(got[name], exact[name]) < 1e-6, name
    # the terms that cancel in d_scores are as large as v * d_o
    assert (got["d_scores"].double() - exact["d_scores"]).abs().max() < 2e-4


def test_a_constant_value_gives_scores_no_gradient() -> None:
    s, v, _ = problem(1, 300, 2, 8, dtype=torch.float32, state=False)
    with torch.no_grad():
        v.fill_(3.0)
    grads = everything(plain, s, v, None, slice(0, 1))
    assert grads["d_scores"].abs().max() < 3 * 8 * 300 * 2**-23


def cumulative(s, v):
    """In float64 with one shift, which moderate scores allow: O(T), to hold long sequences to."""
    p = (s - s.amax(1, keepdim=True).detach()).exp().unsqueeze(-1)
    return (p * v).cumsum(1) / p.cumsum(1)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_long_sequence_in_float32(scale) -> None:
    s, v, _ = problem(1, 65536, 2, 16, dtype=torch.float32, state=False, scale=scale)
    d = torch.randn(v.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    s64, v64, _ = cast(s, v, None)
    exact = cumulative(s64, v64)
    got = scan_attention(s, v)[0]
    assert error(got.detach(), exact.detach()) < 1e-6
    d_s, d_v = torch.autograd.grad(got, (s, v), d.float())
    exact_s, exact_v = torch.autograd.grad(exact, (s64, v64), d.float().double())
    assert error(d_v, exact_v) < 1e-6
    assert error(d_s, exact_s) < 1e-6


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.bfloat16, (2, 130, 3, 16)), (torch.float16, (1, 67, 2, 21))],
    ids=str,
)
def test_sixteen_bits_are_rounded_once(dtype, size) -> None:
    p = problem(*size, dtype=dtype)
    got = everything(plain, *p)
    exact = everything(reference, *cast(*p))
    eps = torch.finfo(dtype).eps
    assert error(got["o"], exact["o"]) <= 0.51 * eps
    assert_close({k: got[k] for k in "muw"}, {k: exact[k] for k in "muw"}, 1e-6)
    assert error(got["d_v"], exact["d_v"]) <= 0.51 * eps
    for name in ("d_m0", "d_u0", "d_w0", "d_scores"):  # these read o as it was stored
        assert error(got[name], exact[name]) <= 2 * eps, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_every_sixteen_bit_number_goes_through(dtype, monkeypatch) -> None:
    """Widening and rounding agree with torch's, subnormals, infinities and NaN included."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    v = bits.view(dtype).view(1, 1, 1, -1)
    with tiling(monkeypatch, vectors_per_panel=1):
        o, last = scan_attention(torch.zeros(1, 1, 1, dtype=dtype), v)
    assert torch.equal(last.w.nan_to_num(7.0).flatten(), v.float().nan_to_num(7.0).flatten())
    assert torch.equal(o.isnan(), v.isnan())
    same = torch.where(v.isnan(), 0, v)
    assert torch.equal(torch.where(o.isnan(), 0, o), same)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 1, 4000, generator=g) * torch.logspace(-9, 5, 4000)
    with tiling(monkeypatch, vectors_per_panel=1):
        pair = scan_attention(torch.zeros(1, 4, 1, dtype=dtype), x.to(dtype))
    expected = (pair[1].w / pair[1].u.unsqueeze(-1)).to(dtype)
    assert torch.equal(pair[0][:, 3].nan_to_num(7.0), expected.nan_to_num(7.0))


TILINGS = [
    {"t_per_chunk": 64, "columns_per_core": 1, "threads": 2},
    {"t_per_chunk": 128, "columns_per_core": 2, "vectors_per_panel": 1, "threads": 3},
    {"vectors_per_panel": 2, "streaming": 1, "fetch_ahead": 1},
    {"columns_per_core": 3, "streaming": 1, "threads": 2},
]


@pytest.mark.parametrize("changes", TILINGS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_every_schedule_computes_the_same(changes, packed, monkeypatch) -> None:
    """Chunks in three phases, heads apart, panels of any width, stores past the caches, loads
    ahead."""
    offsets = torch.tensor([0, 300, 310, 310, 400]) if packed else None
    for reverse in (False, True):
        p = problem(1 if packed else 2, 400, 3, 32, G=4 if packed else None, dtype=torch.float32)
        options = {"cu_seqlens": offsets, "reverse": reverse}
        exact = everything(reference, *cast(*p), **options)
        with tiling(monkeypatch, **changes):
            got = everything(plain, *p, **options)
            again = everything(plain, *p, **options)
        assert_close(got, exact, 2e-6)
        assert all(torch.equal(got[name], again[name]) for name in got), "deterministic"


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_other_instruction_sets(isa, monkeypatch) -> None:
    from autotune.device import Device

    device = Device.current()
    if isa not in device.isas:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setattr(Device, "current", staticmethod(lambda: device.with_isa(isa)))
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 1.6e-2)):
        p = problem(2, 75, 3, 19, dtype=dtype)
        assert_close(everything(plain, *p), everything(reference, *cast(*p)), bound)


def test_strides_of_all_kinds() -> None:
    s, v, state = problem(3, 70, 2, 8)
    expected = everything(reference, s, v, state)
    time_major = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (s, v)]
    gaps = [
        torch.stack((s.detach(), s.detach()), -1)[..., 0],
        torch.stack((v.detach(), v.detach()), 3)[:, :, :, 0],
    ]
    for a, b in (time_major, gaps):
        got = everything(plain, a.requires_grad_(), b.requires_grad_(), state)
        assert_close(got, expected, 1e-13)
    o = scan_attention(*time_major)[0]
    assert o.stride() == time_major[1].stride()


def test_many_to_one() -> None:
    s, v, state = problem(2, 90, 3, 7)
    o, last = scan_attention(s, v, state)
    reduced, same = attention_reduce(s, v, state)
    assert error(reduced, o[:, -1]) < 1e-14
    assert all(torch.equal(a, b) for a, b in zip(last, same, strict=True))
    d = torch.randn_like(reduced)
    got = torch.autograd.grad(reduced, (s, v, *state), d)
    exact = torch.autograd.grad(reference(s, v, state)[0][:, -1], (s, v, *state), d)
    for a, b in zip(got, exact, strict=True):
        assert (a - b).abs().max() < 1e-14
    empty = attention_reduce(s[:, :0], v[:, :0])[0]
    assert torch.equal(empty, torch.zeros_like(empty))


def test_merging_states() -> None:
    s, v, state = problem(2, 90, 3, 7)
    whole = scan_attention(s, v, state)[1]
    parts = [scan_attention(s[:, a:b], v[:, a:b])[1] for a, b in ((0, 31), (31, 31), (31, 90))]
    left = merge(merge(merge(state, parts[0]), parts[1]), parts[2])
    right = merge(state, merge(parts[0], merge(parts[1], parts[2])))
    for a, b, c in zip(whole, left, right, strict=True):
        assert error(a, b) < 1e-14
        assert error(a, c) < 1e-14
    empty = ScanState.empty(2, 3, 7, v)
    assert all(torch.equal(a, b) for a, b in zip(merge(state, empty), state, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(merge(empty, empty), empty, strict=True))
    g = torch.Generator().manual_seed(5)
    a, b = random_state(1, 2, 3, g), random_state(1, 2, 3, g)
    torch.autograd.gradcheck(lambda *x: merge(ScanState(*x[:3]), ScanState(*x[3:])), (*a, *b))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_streaming_equals_the_scan(dtype) -> None:
    s, v, _ = problem(2, 150, 3, 7, dtype=dtype, state=False)
    with torch.no_grad():
        s[:, :2], s[:, 70] = -INF, 90.0
    every, last = scan_attention(s, v)
    state = None
    for t in range(150):
        o, state = step(state, s[:, t], v[:, t])
        assert error(o, every[:, t]) < 20 * torch.finfo(dtype).eps
    assert all(error(a, b) < 20 * torch.finfo(dtype).eps for a, b in zip(state, last, strict=True))


def test_streaming_costs_no_memory() -> None:
    state = None
    sizes = set()
    for _ in range(100):
        _, state = step(state, torch.randn(1, 2), torch.randn(1, 2, 8))
        sizes.add(sum(x.untyped_storage().nbytes() for x in state))
    assert len(sizes) == 1
