"""Derivatives of the derivatives: the first from the kernels, further ones from the reference."""

from __future__ import annotations

import pytest
import torch
from cells_for_tests import shuffled
from problems import problem

from flashrnn import flashrnn, layer, nn
from flashrnn.cells import gru, indrnn, lstm, slstm
from flashrnn.runtime import higher

OPTIONS = {
    "plain": {},
    "all": {"lengths": torch.tensor([3, 1]), "reverse": True, "gradient_clip": 50.0},
}


def function_of(kind, cell, options):
    """A function of tensors, and tensors to call it with."""
    arguments = problem(cell, 2, 3, 2, 2, torch.float64)
    call = flashrnn
    if kind == "layer":
        del arguments["Wx"]
        g = torch.Generator().manual_seed(5)
        W = torch.randn(len(cell.input), 2, 2, 3, generator=g, dtype=torch.float64)
        x = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
        arguments = {"x": x.requires_grad_(), "W": W.requires_grad_(), **arguments}
        call = layer
    names = list(arguments)
    return (
        lambda *t: call(**dict(zip(names, t, strict=True)), function=cell, **options),
        tuple(arguments.values()),
    )


@pytest.mark.parametrize("cell", [lstm, gru, slstm, indrnn, shuffled], ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["recurrence", "layer"])
def test_gradgradcheck(kind, cell) -> None:
    f, inputs = function_of(kind, cell, OPTIONS["all" if cell is lstm else "plain"])
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cell", "options"), [("recurrence", gru, "plain"), ("layer", lstm, "all")]
)
def test_gradgradcheck_element_by_element(kind, cell, options) -> None:
    f, inputs = function_of(kind, cell, OPTIONS[options])
    assert torch.autograd.gradgradcheck(f, inputs)


def test_first_gradients_with_create_graph_are_the_kernels(monkeypatch) -> None:
    f, inputs = function_of("recurrence", lstm, {})
    expected = torch.autograd.grad(f(*inputs)[0].sum(), inputs)
    got = torch.autograd.grad(f(*inputs)[0].sum(), inputs, create_graph=True)
    for a, b in zip(got, expected, strict=True):
        assert a.requires_grad and torch.equal(a, b)
    monkeypatch.setattr(higher, "gradients", lambda *_: (None,) * 5)  # the seam is in use
    with pytest.raises(RuntimeError):
        torch.autograd.grad(f(*inputs)[0].sum(), inputs, create_graph=True)


@pytest.mark.parametrize("kind", ["recurrence", "layer"])
def test_third_derivatives_and_inputs_that_depend_on_each_other(kind) -> None:
    """Partial derivatives stay partial where one input is computed from another."""
    f, inputs = function_of(kind, lstm, {})

    def loss(call, first):
        states = inputs[-1] * first.sum().sin()
        return call(first, *inputs[1:-1], states)[0].square().sum()

    def third(call):
        first = inputs[0]
        (d,) = torch.autograd.grad(loss(call, first), first, create_graph=True)
        (d,) = torch.autograd.grad(d.square().sum(), first, create_graph=True)
        return torch.autograd.grad(d.sum(), first)[0]

    def slow(*t):
        if kind == "recurrence":
            return flashrnn(*t, backend="reference")
        wx = torch.einsum("bti,gndi->btgnd", t[0], t[1])
        every, last = flashrnn(wx, *t[2:], backend="reference")
        return every[0], last

    torch.testing.assert_close(third(f), third(slow), rtol=1e-9, atol=1e-9)


def test_a_gradient_penalty_trains_the_weights() -> None:
    """The usual reason for create_graph: a loss of the gradients, whose gradient reaches R."""

    def penalty(backend):
        p = problem(lstm, 3, 4, 1, 5, torch.float32)
        states, last = flashrnn(**p, backend=backend)
        loss = states.square().sum() + last.sum()
        grads = torch.autograd.grad(loss, [p["Wx"], p["b"]], create_graph=True)
        (loss + sum(g.square().sum() for g in grads)).backward()
        return p["R"].grad

    torch.testing.assert_close(penalty("cpu"), penalty("reference"), rtol=1e-4, atol=1e-4)


def test_both_directions_side_by_side_and_a_state_computed_from_the_input() -> None:
    """create_graph changes no gradient, also where directions run in two threads."""
    module = nn.GRU(5, 32, bidirectional=True, dtype=torch.float64)
    x = torch.randn(1100, 1, 5, dtype=torch.float64, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loss = module(x, x.mean(2).sum(0).sin().expand(2, 1, 32))[0].square().sum()
        (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
        (got,) = torch.autograd.grad(loss, x, create_graph=True)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(got, expected)
