"""Linear recurrences against a loop, and the layers that rest on them against theirs."""

import pytest
import torch
from scan_problems import assert_close, tiling

from flashrnn.errors import DtypeError, ShapeError
from flashrnn.scan import DiagonalStateSpace, MinGRU, QuasiLSTM, linear_scan
from flashrnn.scan_reference import linear_reference as reference

COMPLEX, DOUBLE = torch.complex128, torch.float64


pytestmark = pytest.mark.usefixtures("poisoned")


def problem(shape, dtype=DOUBLE, a_shape=None, h0=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    wide = COMPLEX if dtype.is_complex else DOUBLE

    def normal(shape, scale=1.0):
        return torch.randn(shape, generator=g, dtype=wide) * scale

    a = normal(a_shape or shape, 0.6).to(dtype).requires_grad_()
    b = normal(shape).to(dtype).requires_grad_()
    state = dtype if dtype.is_complex else torch.promote_types(dtype, torch.float32)
    start = normal((shape[0], *shape[2:])).to(state).requires_grad_() if h0 else None
    return a, b, start


def everything(function, a, b, h0, **options):
    h = function(a, b, h0, **options)
    g = torch.Generator().manual_seed(1)
    d = torch.randn(h.shape, generator=g, dtype=COMPLEX if h.is_complex() else DOUBLE)
    inputs = [x for x in (a, b, h0) if x is not None]
    grads = torch.autograd.grad(h, inputs, d.to(h.dtype))
    found = dict(zip(("h", "d_a", "d_b", "d_h0"), (h.detach(), *grads), strict=False))
    return {k: torch.view_as_real(x) if x.is_complex() else x for k, x in found.items()}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 5), (3, 70, 2, 13), (2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("h0", [False, True])
def test_against_a_loop(shape, dtype, reverse, h0) -> None:
    p = problem(shape, dtype, h0=h0)
    got = everything(linear_scan, *p, reverse=reverse)
    assert_close(got, everything(reference, *p, reverse=reverse), 1e-13)


@pytest.mark.parametrize("dtype", [DOUBLE, COMPLEX], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(dtype, reverse) -> None:
    p = problem((2, 5, 3), dtype)
    assert torch.autograd.gradcheck(lambda *x: linear_scan(*x, reverse), p)
    assert torch.autograd.gradgradcheck(lambda *x: linear_scan(*x, reverse), p, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("changes", [
    {"t_per_chunk": 64, "threads": 2, "columns_per_core": 16},
    {"t_per_chunk": 128, "streaming": 1, "vectors_per_panel": 1},
], ids=str)  # fmt: skip
def test_every_schedule_computes_the_same(dtype, reverse, changes, monkeypatch) -> None:
    p = problem((2, 300, 32), dtype)
    exact = [x.detach().to(COMPLEX if dtype.is_complex else DOUBLE).requires_grad_() for x in p]
    with tiling(monkeypatch, **changes):
        got = everything(linear_scan, *p, reverse=reverse)
        again = everything(linear_scan, *p, reverse=reverse)
    assert_close(got, everything(reference, *exact, reverse=reverse), 2e-6)
    assert all(torch.equal(got[k], again[k]) for k in got), "deterministic"


@pytest.mark.parametrize("a_shape", [(4, 3), (1, 1, 4, 3), (2, 1, 1, 3), (9, 1, 1), ()], ids=str)
def test_a_constant_factor_is_not_expanded(a_shape) -> None:
    p = problem((2, 9, 4, 3), a_shape=a_shape)
    assert_close(everything(linear_scan, *p), everything(reference, *p), 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype) -> None:
    p = problem((2, 20, 9), dtype)
    exact = everything(reference, *(x.detach().double().requires_grad_() for x in p))
    got = everything(linear_scan, *p)
    for name in ("h", "d_b", "d_h0"):
        assert_close({name: got[name]}, {name: exact[name]}, 0.51 * torch.finfo(dtype).eps)
    assert_close({"d_a": got["d_a"]}, {"d_a": exact["d_a"]}, 2 * torch.finfo(dtype).eps)


def test_time_major_and_empty() -> None:
    a, b, h0 = (x.detach() for x in problem((3, 6, 4)))
    expected = reference(a, b, h0)
    major = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (a, b)]
    h = linear_scan(*major, h0)
    assert torch.allclose(h, expected, rtol=1e-13)
    assert h.stride() == major[1].stride()
    assert linear_scan(a[:, :0], b[:, :0], h0).shape == (3, 0, 4)
    assert linear_scan(a[:0], b[:0]).shape == (0, 6, 4)


def test_bad_arguments() -> None:
    b = torch.randn(2, 3, 4)
    with pytest.raises(ShapeError, match=r"\(5,\).*\(2, 3, 4\)"):
        linear_scan(torch.randn(5), b)
    with pytest.raises(DtypeError, match="complex64"):
        linear_scan(torch.randn(4, dtype=torch.complex64), b)
    with pytest.raises(ShapeError, match=r"\(2, 4\)"):
        linear_scan(b, b, torch.randn(2, 3))
    with pytest.raises(DtypeError, match="int64"):
        linear_scan(b, torch.ones(2, 3, 4, dtype=torch.int64))


def test_opcheck() -> None:
    a, b, h0 = problem((2, 5, 3))
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.linear_scan, (a, b, h0, True))
    a, b, h0 = a.detach(), b.detach(), h0.detach()
    torch.library.opcheck(ops.linear_scan_backward, (a, b, b, h0, False))
    torch.library.opcheck(ops.linear_scan_backward, (a, b, b, None, False))


def loop(layer, x, equations):
    state, outputs = None, []
    for t in range(x.shape[1]):
        y, state = equations(layer, x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def quasi_lstm(layer, x, c):
    f, i, z, o = (x @ layer.gates.weight.T + layer.gates.bias).chunk(4, -1)
    c = torch.sigmoid(f) * (0 if c is None else c) + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def min_gru(layer, x, h):
    z, candidate = (x @ layer.gates.weight.T + layer.gates.bias).chunk(2, -1)
    h = (1 - torch.sigmoid(z)) * (0 if h is None else h) + torch.sigmoid(z) * candidate
    return h, h


def state_space(layer, x, h):
    """(1 - dt A / 2) h_t = (1 + dt A / 2) h_{t-1} + dt x_t as a linear system per channel."""
    A = torch.complex(-layer.log_decay.exp(), layer.frequency)
    dt = layer.log_step.exp()[:, None, None]
    eye = torch.eye(layer.states, dtype=A.dtype)
    left, right = eye - dt / 2 * torch.diag_embed(A), eye + dt / 2 * torch.diag_embed(A)
    h = torch.zeros(x.shape[0], *A.shape, dtype=A.dtype) if h is None else h
    new = (right @ h.unsqueeze(-1)) + (dt.squeeze(-1) * x.unsqueeze(-1)).unsqueeze(-1)
    h = torch.linalg.solve(left, new).squeeze(-1)
    C = torch.complex(layer.C[..., 0], layer.C[..., 1])
    return (C * h).sum(-1).real * 2 + layer.D * x, h


LAYERS = {
    "quasi-LSTM": (lambda: QuasiLSTM(6, 5, dtype=DOUBLE), quasi_lstm),
    "minGRU": (lambda: MinGRU(6, 5, dtype=DOUBLE), min_gru),
    "state space": (lambda: DiagonalStateSpace(6, 4, dtype=DOUBLE), state_space),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_against_their_equations(name) -> None:
    torch.manual_seed(0)
    make, equations = LAYERS[name]
    layer = make()
    x = torch.randn(3, 12, 6, dtype=DOUBLE, requires_grad=True)
    (y, last), (expected, exact) = layer(x), loop(layer, x, equations)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(last, exact, rtol=1e-12, atol=1e-13)
    inputs = (x, *layer.parameters())
    d = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, d), torch.autograd.grad(expected, inputs, d), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    first, state = layer(x[:, :7])
    rest = []
    for t in range(7, 12):
        step, state = layer.step(x[:, t], state)
        rest.append(step)
    torch.testing.assert_close(torch.cat((first, torch.stack(rest, 1)), 1), y)
    empty, same = layer(x[:, :0], last)
    assert torch.equal(same, last)
    assert empty.shape[1] == 0
    with pytest.raises(ShapeError, match=r"6\]"):
        layer(x[:, :, :5])
