"""torch.autocast: bfloat16 is what is stored and returned, float32 is what is computed in."""

from __future__ import annotations

import pytest
import torch
from problems import problem

import flashrnn
from flashrnn.cells import gru, lstm, slstm


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("cell", [lstm, gru, slstm], ids=lambda c: c.name)
def test_stores_in_bfloat16_and_computes_in_float32(cell) -> None:
    p = problem(cell, 3, 20, 2, 9, torch.float32)
    with bf16():
        got = flashrnn.flashrnn(**p, function=cell)
    rounded = {k: v.detach().bfloat16().float().requires_grad_() for k, v in p.items()}
    expected = flashrnn.flashrnn(**rounded, function=cell)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())  # rounded once, at the end
    d = torch.randn(got[0].shape).bfloat16()
    grads = torch.autograd.grad(got[0], list(p.values()), d)
    exact = torch.autograd.grad(expected[0], list(rounded.values()), d.float())
    for a, b in zip(grads, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.bfloat16().float())


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_modules_return_what_torch_returns(kind) -> None:
    theirs = getattr(torch.nn, kind)(6, 16)
    ours = getattr(flashrnn.nn, kind)(6, 16)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(12, 3, 6)
    with bf16():
        a, s = ours(x)
        again, _ = ours(x, s)  # what it returned is what it takes
        try:
            b, t = theirs(x)
        except RuntimeError as error:  # oneDNN has no such LSTM without AVX-512
            if "primitive descriptor" not in str(error):
                raise
            pytest.skip(f"torch.nn.{kind} in bfloat16 does not run on this machine")
    assert a.dtype == b.dtype == again.dtype == torch.bfloat16
    exact, _ = theirs.double()(x.double())
    assert (a - exact).abs().max() <= (b - exact).abs().max() * 1.5
    s, t = (v if isinstance(v, tuple) else (v,) for v in (s, t))
    assert [v.dtype for v in s] == [v.dtype for v in t]
    (a.float().sum()).backward()
    assert ours.weight_ih_l0.grad.dtype == torch.float32


def test_a_gru_returns_the_dtype_of_the_region() -> None:
    """torch.nn.GRU is float32 there on a CPU and 16 bits on a GPU; ours is the same on both."""
    with bf16():
        output, h = flashrnn.nn.GRU(6, 16)(torch.randn(12, 3, 6))
    assert output.dtype == h.dtype == torch.bfloat16


def test_float64_and_other_regions_stay() -> None:
    p = problem(lstm, 1, 2, 1, 3, torch.float64)
    with bf16():
        assert flashrnn.flashrnn(**p)[0].dtype == torch.float64
    single = problem(lstm, 1, 2, 1, 3, torch.float32)
    with bf16(), torch.autocast("cpu", enabled=False):
        assert flashrnn.flashrnn(**single)[0].dtype == torch.float32


def test_second_derivatives_are_not_taken_in_sixteen_bits() -> None:
    p = problem(lstm, 2, 3, 1, 4, torch.float32)

    def second():
        (d,) = torch.autograd.grad(
            flashrnn.flashrnn(**p)[0].square().sum(), p["Wx"], create_graph=True
        )
        return d.square().sum()

    loss = second()
    (expected,) = torch.autograd.grad(loss, p["R"], retain_graph=True)
    with bf16():
        (got,) = torch.autograd.grad(loss, p["R"])
    torch.testing.assert_close(got, expected)


def test_compiled() -> None:
    module = flashrnn.nn.LSTM(6, 8)
    x = torch.randn(5, 3, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with bf16():
        got, expected = compiled(x)[0], module(x)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)
