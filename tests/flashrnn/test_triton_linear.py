"""Linear recurrences by Triton's kernels, in its interpreter, and linear attention on them."""

import pytest
import torch
from scan_problems import assert_close, triton_tiling
from test_linear_scan import COMPLEX, DOUBLE, everything, problem

from flashrnn import linear_attention
from flashrnn.attention import linear_attention_step
from flashrnn.errors import BackendError, DeviceError, DtypeError
from flashrnn.scan import linear_scan
from flashrnn.scan_reference import linear_reference as reference

pytest.importorskip("triton", reason="Triton is not installed")

FLOAT32, COMPLEX64 = torch.float32, torch.complex64
SCHEDULES = {"sequential": {}, "chunks": {"t_per_chunk": 8}}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, poisoned):
    """What the kernels fill is full of NaN first."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch):
    with triton_tiling(monkeypatch, 4, 32, **SCHEDULES[request.param]):
        yield


def check(p, bound=1e-6, **options):
    got = everything(linear_scan, *p, **options, backend="triton")
    wide = COMPLEX if p[1].is_complex() else DOUBLE
    exact = [None if x is None else x.detach().to(wide).requires_grad_() for x in p]
    assert_close(got, everything(reference, *exact, **options), bound)
    return got


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_against_a_loop(schedule, dtype, reverse) -> None:
    p = problem((2, 13, 5), dtype)
    got = check(p, reverse=reverse)
    again = everything(linear_scan, *p, reverse=reverse, backend="triton")
    assert all(torch.equal(got[k], again[k]) for k in got), "deterministic"


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9), (1, 5, 3, 11), (1, 3, 45)], ids=str)
def test_shapes_and_no_initial_state(schedule, shape) -> None:
    check(problem(shape, FLOAT32, h0=False))


@pytest.mark.parametrize("a_shape", [(4, 3), (2, 1, 1, 3), (9, 1, 1), ()], ids=str)
def test_a_constant_factor(schedule, a_shape) -> None:
    check(problem((2, 9, 4, 3), FLOAT32, a_shape=a_shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_rounded_once(schedule, dtype) -> None:
    p = problem((1, 13, 9), dtype)
    exact = everything(reference, *(x.detach().double().requires_grad_() for x in p))
    got = everything(linear_scan, *p, backend="triton")
    eps = torch.finfo(dtype).eps
    for name in ("h", "d_b", "d_h0"):
        assert_close({name: got[name]}, {name: exact[name]}, 0.51 * eps)
    assert_close({"d_a": got["d_a"]}, {"d_a": exact["d_a"]}, 2 * eps)


def test_strides_conjugates_and_nothing() -> None:
    a, b, h0 = (x.detach() for x in problem((2, 5, 4), COMPLEX64))
    expected = reference(a.conj(), b, h0)
    h = linear_scan(a.conj(), b.transpose(0, 1).contiguous().transpose(0, 1), h0, backend="triton")
    torch.testing.assert_close(h, expected)
    assert linear_scan(a[:, :0], b[:, :0], h0, backend="triton").shape == (2, 0, 4)
    assert linear_scan(a[:0], b[:0], backend="triton").shape == (0, 5, 4)


@pytest.mark.slow
def test_opcheck() -> None:
    for dtype in (FLOAT32, COMPLEX64):
        a, b, h0 = problem((2, 5, 3), dtype)
        ops = torch.ops.flashrnn
        torch.library.opcheck(ops.triton_linear_scan, (a, b, h0, True))
    a, b, h0 = (x.detach() for x in problem((2, 5, 3), FLOAT32))
    torch.library.opcheck(ops.triton_linear_scan_backward, (a, b, b, h0, False))


def attention_loop(q, k, v, prefix, decay, state):
    if prefix is not None:
        state = state + torch.einsum("bmnk,bmnv->bnkv", *prefix)
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None, None].exp() * state
        state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bnk,bnkv->bnv", q[:, t], state))
    return torch.stack(outputs, 1), state


def test_linear_attention() -> None:
    """A prefix, a decay that forgets, several chunks; gradients to all; and streaming."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g).requires_grad_()

    q, k, v, state = (
        normal(1, 70, 1, 3),
        normal(1, 70, 1, 3),
        normal(1, 70, 1, 2),
        normal(1, 1, 3, 2),
    )
    prefix = normal(1, 5, 1, 3), normal(1, 5, 1, 2)
    decay = (-torch.rand(1, 70, 1, generator=g)).requires_grad_()
    inputs = (q, k, v, *prefix, decay, state)
    results = linear_attention(
        q, k, v, prefix=prefix, decay=decay, state=state, backend="triton"
    )  # fmt: skip
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = attention_loop(*wide[:3], tuple(wide[3:5]), *wide[5:])
    for got, expected in zip(results, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    d = [torch.randn(x.shape, generator=g) for x in results]
    grads = torch.autograd.grad(results, inputs, d)
    expected = torch.autograd.grad(exact, wide, [x.double() for x in d])
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    o, last = linear_attention_step(results[1].detach(), q[:, 0], k[:, 0], v[:, 0], decay[:, 0])
    assert (o.shape, last.shape) == ((1, 1, 2), (1, 1, 3, 2))


def test_a_back_end_that_cannot_run_is_told(monkeypatch) -> None:
    b = torch.randn(1, 3, 4)
    with pytest.raises(DtypeError, match=r"kernels for float32, .* b is torch.float64"):
        linear_scan(b.double(), b.double(), backend="triton")
    with pytest.raises(DtypeError, match=r"b is torch.complex128"):
        linear_scan(b.cdouble(), b.cdouble(), backend="triton")
    with pytest.raises(BackendError, match="'gpu'"):
        linear_scan(b, b, backend="gpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(DeviceError, match=r"b is on the CPU; TRITON_INTERPRET=1"):
        linear_scan(b, b, backend="triton")
    assert torch.equal(linear_scan(b, b), linear_scan(b, b, backend="cpu"))
