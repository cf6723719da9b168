"""The generated CPU kernels against the reference, torch.nn.LSTM and finite differences."""

import itertools

import pytest
import torch
from cells_for_tests import ALL
from problems import check, problem, run

from autotune.device import Device
from flashrnn import flashrnn
from flashrnn.cells import elman, elman_relu, gru, lstm, slstm

SHAPES = [(1, 1, 1, 1), (2, 3, 2, 5), (5, 7, 1, 50), (3, 4, 3, 17), (17, 5, 2, 33), (1, 9, 1, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 1, 513)])
def test_lstm(shape, dtype) -> None:
    check(lstm, problem(lstm, *shape, dtype))


@pytest.mark.parametrize("cell", [gru, elman, elman_relu, slstm, *ALL], ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 2, 17)])
def test_every_cell(cell, shape) -> None:
    check(cell, problem(cell, *shape, torch.float64))
    check(cell, problem(cell, *shape, torch.float32))


@pytest.mark.parametrize("cell", [gru, elman, elman_relu, slstm], ids=lambda c: c.name)
def test_wide_panels(cell) -> None:
    check(cell, problem(cell, 5, 6, 1, 40, torch.float32))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 5), (3, 4, 1, 17), (2, 2, 3, 33)])
def test_gradcheck_on_the_kernels(shape) -> None:
    arguments = tuple(problem(lstm, *shape, torch.float64).values())
    assert torch.autograd.gradcheck(
        lambda *a: flashrnn(*a, backend="cpu"), arguments, fast_mode=shape[-1] > 17
    )


@pytest.mark.parametrize(
    ("isa", "dtype"),
    [
        *itertools.product(["avx512", "avx2", "generic"], [torch.float32]),
        *itertools.product(["avx512", "avx2"], [torch.float64]),
        pytest.param("generic", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_every_instruction_set_of_this_machine(isa, dtype, monkeypatch) -> None:
    device = Device.current()
    if isa not in device.isas:
        pytest.skip(f"this processor has no {isa}")
    narrowed = device.with_isa(isa)
    monkeypatch.setattr(Device, "current", staticmethod(lambda: narrowed))
    check(lstm, problem(lstm, 5, 7, 1, 50, dtype))
    check(slstm, problem(slstm, 3, 4, 2, 17, dtype))


@pytest.mark.parametrize(("B", "T", "D"), [(5, 7, 50), (2, 3, 513), (1, 20, 64)])
def test_equals_torch_lstm(B, T, D) -> None:
    torch.manual_seed(0)
    peer = torch.nn.LSTM(D, D, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    h0, c0 = (torch.randn(1, B, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected, (h_n, c_n) = peer(x, (h0, c0))
    w, r = peer.weight_ih_l0, peer.weight_hh_l0
    wx = (x @ w.t()).view(T, B, 4, 1, D).transpose(0, 1)
    bias = (peer.bias_ih_l0 + peer.bias_hh_l0).view(4, 1, D)
    initial = torch.stack((h0[0], c0[0])).view(2, B, 1, 1, D)
    states, last = flashrnn(wx, r.view(4, 1, D, D), bias, initial, backend="cpu")
    h = states[0, :, :, 0].transpose(0, 1)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last[:, :, 0, 0], torch.cat((h_n, c_n)), rtol=0, atol=1e-12)
    leaves = (x, h0, c0, *peer.parameters())
    d = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * d).sum() + c_n.sum(), leaves)
    ours = torch.autograd.grad((h * d).sum() + last[1].sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("mode", ["GRU", "tanh", "relu"])
def test_equals_torch_gru_and_rnn(mode) -> None:
    B, T, D = 3, 6, 21
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    peer = (
        torch.nn.GRU(D, D, **double)
        if mode == "GRU"
        else torch.nn.RNN(D, D, nonlinearity=mode, **double)
    )
    x = torch.randn(T, B, D, requires_grad=True, **double)
    h0 = torch.randn(1, B, D, requires_grad=True, **double)
    w, r = peer.weight_ih_l0, peer.weight_hh_l0
    b_i, b_h = peer.bias_ih_l0.view(-1, 1, D), peer.bias_hh_l0.view(-1, 1, D)
    wx = (x @ w.t()).view(T, B, -1, 1, D).transpose(0, 1)
    r = r.view(-1, 1, D, D)
    if mode == "GRU":  # ours has R in the order n r z, and biases n_rec r z n_in
        bias = torch.cat((b_h[2:], b_i[:2] + b_h[:2], b_i[2:]))
        r, cell = torch.cat((r[2:], r[:2])), gru
    else:
        bias, cell = b_i + b_h, {"tanh": elman, "relu": elman_relu}[mode]
    states, _ = flashrnn(wx, r, bias, h0[0].view(1, B, 1, 1, D), function=cell, backend="cpu")
    h, (expected, _) = states[0, :, :, 0].transpose(0, 1), peer(x, h0)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-12)
    d, leaves = torch.randn_like(expected), (x, h0, *peer.parameters())
    theirs = torch.autograd.grad(expected, leaves, d)
    for a, b in zip(torch.autograd.grad(h, leaves, d), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["slstm_B2T5N2D8", "slstm_B3T7N1D16_init"])
def test_slstm_kernels_equal_an_independent_implementation(name, golden) -> None:
    z = golden(name)
    inputs = [z[k].requires_grad_() for k in ("Wx", "R", "b", "states0")]
    states, _ = flashrnn(*inputs, function=slstm, backend="cpu")
    torch.testing.assert_close(states, z["states"], rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad((states[0] * z["cot_h"]).sum(), inputs[:3])
    for got, key in zip(grads, ("dWx", "dR", "db"), strict=True):
        torch.testing.assert_close(got, z[key], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cell", [gru, elman, slstm], ids=lambda c: c.name)
def test_gradcheck_of_other_cells(cell) -> None:
    arguments = tuple(problem(cell, 2, 3, 2, 5, torch.float64).values())
    assert torch.autograd.gradcheck(
        lambda *a: flashrnn(*a, function=cell, backend="cpu"), arguments
    )


@pytest.mark.parametrize("which", range(2))
def test_any_state_alone_may_enter_the_loss(which) -> None:
    arguments = problem(lstm, 3, 5, 2, 9, torch.float64)
    for pick in (
        lambda s, _l: s[which],
        lambda _s, last: last[which],
        lambda s, _l: s[which, :, 2],
    ):
        grads = []
        for backend in ("cpu", "reference"):
            loss = pick(*flashrnn(**arguments, backend=backend)).square().sum()
            grads.append(torch.autograd.grad(loss, list(arguments.values())))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [lstm, slstm], ids=lambda c: c.name)
def test_sums_over_many_rows(cell) -> None:
    """Gradients of weights are sums over 16,384 rows, which one running total would blur."""
    check(cell, problem(cell, 32, 512, 1, 20, torch.float32))


@pytest.mark.parametrize("cell", [gru, slstm], ids=lambda c: c.name)
def test_sums_over_many_units(cell) -> None:
    check(cell, problem(cell, 5, 48, 1, 700, torch.float32))


def test_no_bias_and_no_initial_states() -> None:
    full = problem(lstm, 3, 4, 2, 9, torch.float64)
    del full["b"], full["states"]
    check(lstm, full)


def test_rows_do_not_depend_on_their_batch() -> None:
    """A row computes the same bits in any register tile, in several stretches of terms too."""
    arguments = problem(lstm, 13, 6, 1, 300, torch.float32)
    threads = torch.get_num_threads()
    with torch.no_grad():
        whole, _ = flashrnn(**arguments)
        try:
            torch.set_num_threads(1)  # a row alone has wider panels then
            for b in range(13):
                wx, states = arguments["Wx"][b : b + 1], arguments["states"][:, b : b + 1]
                alone, _ = flashrnn(wx, arguments["R"], arguments["b"], states)
                assert torch.equal(alone[:, 0], whole[:, b])
        finally:
            torch.set_num_threads(threads)


def test_memory_order() -> None:
    """States lie step by step, the gradient of Wx as Wx does."""
    arguments = problem(lstm, 3, 5, 2, 8, torch.float64)
    batch_major = arguments["Wx"].detach().contiguous()
    time_major = batch_major.transpose(0, 1).contiguous().transpose(0, 1)
    results = []
    for wx in (batch_major, time_major):
        states, _ = flashrnn(wx.requires_grad_(), arguments["R"], arguments["b"])
        assert states.transpose(1, 2).is_contiguous()
        (d_wx,) = torch.autograd.grad(states.sum(), wx)
        assert d_wx.stride() == wx.stride()
        results.append((states, d_wx))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["Wx", "R", "b", "states"])
def test_strided_views_are_no_error(name) -> None:
    arguments = problem(lstm, 3, 4, 2, 6, torch.float64)
    x = arguments[name].detach()
    views = {
        "permuted": x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "every other": x.repeat_interleave(2, -1)[..., ::2],
        "expanded": x[..., :1].expand_as(x),
    }
    for view in views.values():
        changed = {**arguments, name: view.requires_grad_()}
        check(lstm, changed)
        assert not view.is_contiguous()


def test_extreme_inputs() -> None:
    arguments = problem(lstm, 2, 6, 1, 20, torch.float32)
    with torch.no_grad():
        arguments["Wx"] *= 100
        arguments["states"] *= 1e4
    check(lstm, arguments)


def test_nan_goes_in_and_comes_out() -> None:
    arguments = problem(lstm, 2, 3, 1, 20, torch.float32)
    with torch.no_grad():
        arguments["Wx"].fill_(torch.nan)
    states, last = flashrnn(**arguments)
    assert states.isnan().all()
    assert last.isnan().all()


@pytest.mark.parametrize(("B", "T"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(B, T) -> None:
    arguments = problem(lstm, B, T, 2, 8, torch.float32)
    states, last = flashrnn(**arguments)
    assert states.shape == (2, B, T, 2, 8)
    if T == 0:
        assert torch.equal(last, arguments["states"])
    grads = torch.autograd.grad(states.sum() + last.sum(), list(arguments.values()))
    assert torch.equal(grads[1], torch.zeros_like(grads[1]))
    if T == 0:
        assert torch.equal(grads[3], torch.ones_like(grads[3]))


def test_gradients_of_some_inputs_only() -> None:
    arguments = problem(lstm, 3, 4, 2, 9, torch.float64)
    full = run(lstm, arguments, "cpu")
    for name in arguments:
        some = {k: v.detach().requires_grad_(k == name) for k, v in arguments.items()}
        states, last = flashrnn(**some)
        g = torch.Generator().manual_seed(1)
        cotangents = [
            torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (states, last)
        ]
        (grad,) = torch.autograd.grad((states, last), (some[name],), cotangents)
        torch.testing.assert_close(grad, full[f"d_{name}"], rtol=1e-12, atol=1e-12)
