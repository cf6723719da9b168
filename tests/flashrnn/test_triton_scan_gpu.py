"""The scans' Triton kernels on a real GPU: the comparisons of the interpreter's tests, compiled.

`pytest -m gpu`. Without a GPU every test here is skipped, and says so.
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
from test_linear_scan import COMPLEX, DOUBLE
from test_linear_scan import everything as everything_linear
from test_linear_scan import problem as linear_problem

from flashrnn import linear_attention
from flashrnn.attention import ScanState, scan_attention
from flashrnn.scan import linear_scan
from flashrnn.scan_reference import attention_reference as reference
from flashrnn.scan_reference import linear_reference

pytestmark = pytest.mark.gpu
SCHEDULES = [{}, {"t_per_chunk": 64}, {"t_per_chunk": 32, "d_per_program": 16}]


def on_gpu(function):
    """The function with its tensors moved to the GPU and its results back; autograd follows."""

    def run(*tensors, **options):
        moved = [None if x is None else x.cuda() for x in tensors]
        return function(*moved, **options).cpu()

    return run


def attention(s, v, state=None, **options):
    state = None if state is None else ScanState(*(x.cuda() for x in state))
    o, last = by_triton(s.cuda(), v.cuda(), state, **options)
    return o.cpu(), ScanState(*(x.cpu() for x in last))


def check(p, bound=2e-6, **options) -> None:
    got = everything(attention, *p, **options)
    assert_close(got, everything(reference, *cast(*p), **options), bound)


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 70, 3, 5), (1, 200, 2, 64), (3, 65, 2, 130)])
@pytest.mark.parametrize("reverse", [False, True])
def test_attention(changes, size, reverse, monkeypatch) -> None:
    check(problem(*size, dtype=torch.float32), reverse=reverse)
    with triton_tiling(monkeypatch, **changes):
        check(problem(*size, dtype=torch.float32), reverse=reverse)
        check(problem(*size, dtype=torch.float32, state=False), reverse=reverse)


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_and_masked(changes, reverse, monkeypatch) -> None:
    offsets = [0, 3, 3, 68, 70, 200]
    p = problem(1, 200, 3, 9, G=5, dtype=torch.float32)
    with triton_tiling(monkeypatch, **changes):
        check(p, cu_seqlens=torch.tensor(offsets), reverse=reverse)
        s, v, _ = problem(2, 90, 2, 5, dtype=torch.float32, state=False)
        with torch.no_grad():
            s[:, :70] = -torch.inf
        check((s, v, None), outputs=slice(0, 1))


@pytest.mark.parametrize("changes", SCHEDULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits(changes, dtype, monkeypatch) -> None:
    p = problem(2, 130, 3, 21, dtype=dtype)
    with triton_tiling(monkeypatch, **changes):
        check(p, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_long_sequence_and_late_scores(scale) -> None:
    s, v, _ = problem(1, 65536, 2, 16, dtype=torch.float32, state=False, scale=scale)
    d = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    s64, v64, _ = cast(s, v, None)
    p = (s64 - s64.amax(1, keepdim=True).detach()).exp().unsqueeze(-1)
    exact = (p * v64).cumsum(1) / p.cumsum(1)
    got = attention(s, v)[0]
    found = torch.autograd.grad(got, (s, v), d)
    expected = torch.autograd.grad(exact, (s64, v64), d.double())
    for a, b in zip((got.detach(), *found), (exact.detach(), *expected), strict=True):
        assert error(a, b) < 1e-6
    with torch.no_grad():
        s.zero_()
        s[:, 40_000] = 120
        assert (
            error(attention(s, v)[0][:, 40_000:], v[:, 40_000:40_001].expand(-1, 25_536, -1, -1))
            < 1e-6
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_linear(dtype, reverse) -> None:
    for shape in ((1, 1, 1), (3, 70, 2, 13), (2, 1000, 40), (64, 300, 96)):
        p = linear_problem(shape, dtype)
        wide = COMPLEX if dtype.is_complex else DOUBLE
        exact = [x.detach().to(wide).requires_grad_() for x in p]
        run = on_gpu(lambda *x: linear_scan(*x, reverse, backend="triton"))
        expected = everything_linear(lambda *x: linear_reference(*x, reverse), *exact)
        assert_close(everything_linear(run, *p), expected, 2e-6)


def test_linear_attention_and_auto() -> None:
    q, k, v = (torch.randn(2, 130, 3, 16) for _ in range(3))
    decay = -torch.rand(2, 130, 3)
    expected, _ = linear_attention(*(x.double() for x in (q, k, v)), decay=decay.double())
    o, _ = linear_attention(*(x.cuda() for x in (q, k, v)), decay=decay.cuda())
    assert error(o.cpu(), expected) < 1e-5
    s = torch.randn(2, 130, 3, device="cuda")
    first, _ = scan_attention(s, v.cuda())
    second, _ = scan_attention(s, v.cuda(), backend="triton")
    assert torch.equal(first, second)
