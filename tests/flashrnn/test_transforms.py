"""torch.func and forward-mode differentiation: the reference carries them, kernels say that not."""

from __future__ import annotations

import pytest
import torch
from problems import problem
from torch.autograd import forward_ad

from flashrnn import choose_backend, flashrnn, layer, linear_scan, scan_attention
from flashrnn.cells import lstm, slstm
from flashrnn.errors import BackendError

P = {k: v.detach() for k, v in problem(slstm, 4, 3, 2, 5, torch.float64).items()}
TANGENT = torch.randn_like(P["Wx"])


def h(wx, backend="auto"):
    return flashrnn(**{**P, "Wx": wx}, function=slstm, backend=backend)[0][0]


def layer_h(x):
    w = torch.ones(4, 2, 5, 3, dtype=x.dtype)
    return layer(x, w, P["R"], P["b"], P["states"], slstm, backend="cpu")[0]


def forward_mode(function, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


TRANSFORMS = {
    "vmap": lambda f, x, _: torch.func.vmap(f)(torch.stack([x, x])),
    "grad": lambda f, x, _: torch.func.grad(lambda y: f(y).sum())(x),
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,)),
    "forward mode": forward_mode,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_kernels_refuse_what_they_do_not_carry(name) -> None:
    words = "forward-mode" if name == "forward mode" else "torch.func transform"
    with pytest.raises(BackendError, match=f"does not carry .*{words}.*reference"):
        TRANSFORMS[name](lambda x: h(x, "cpu"), P["Wx"], TANGENT)
    x = torch.ones(4, 3, 3, dtype=torch.float64)
    with pytest.raises(BackendError, match=words):
        TRANSFORMS[name](layer_h, x, x)


def test_auto_takes_the_reference_and_says_why() -> None:
    said = []

    def f(wx):
        said.append(choose_backend(wx))
        return h(wx)

    xs = torch.stack([P["Wx"], P["Wx"] + 1, P["Wx"] - 1])
    got = torch.func.vmap(f)(xs)
    assert said[0].backend == "reference" and "torch.func" in said[0].reason
    torch.testing.assert_close(got, torch.stack([h(x, "cpu") for x in xs]))


def test_forward_mode_through_auto_is_right() -> None:
    """Not None and not zero: a tangent must never be lost on the way into a kernel."""
    step = 1e-6
    expected = (h(P["Wx"] + step * TANGENT) - h(P["Wx"] - step * TANGENT)) / (2 * step)
    for got in (forward_mode(h, P["Wx"], TANGENT), torch.func.jvp(h, (P["Wx"],), (TANGENT,))[1]):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_the_bare_operator_loses_no_tangent() -> None:
    p = {k: v.detach() for k, v in problem(lstm, 2, 3, 1, 4, torch.float64).items()}
    rest = (p["R"], None, None, None, "lstm", None, 1.0, False, False)
    with pytest.raises(BackendError, match="forward-mode"):
        forward_mode(lambda x: torch.ops.flashrnn.recurrence(x, *rest)[0], p["Wx"], p["Wx"])


def test_gradients_of_each_sample() -> None:
    def loss(R, wx):
        return flashrnn(wx[None], R, P["b"], function=slstm)[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(P["R"], P["Wx"])
    R = P["R"].clone().requires_grad_()
    for got, wx in zip(each, P["Wx"], strict=True):
        (expected,) = torch.autograd.grad(loss(R, wx), R)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("training", [False, True])
def test_what_left_a_transform_is_a_tensor_again(training) -> None:
    x, w = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(4, 2, 5, 3, dtype=torch.float64)
    left = []
    torch.func.grad(lambda y: left.append(y) or y.sum())(x)
    w.requires_grad_(training)
    for _ in range(2):  # the second time, checks of the first are remembered
        found = layer(left[0], w, P["R"], P["b"], None, slstm)[0]
        wanted = layer(x, w, P["R"], P["b"], None, slstm)[0]
        assert torch.equal(found, wanted)
        if training:
            assert torch.equal(*(torch.autograd.grad(h.sum(), w)[0] for h in (found, wanted)))


def left_behind(x: torch.Tensor) -> torch.Tensor:
    """What a function inside torch.func.grad saw of x, kept beyond the transform's end."""
    kept = []
    torch.func.grad(lambda y: (kept.append(y), y.sum())[1])(x)
    return kept[0]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("call", [flashrnn, layer, scan_attention, linear_scan])
def test_tensors_that_left_a_transform(call, grad) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = {
        flashrnn: ((2, 3, 4, 1, 5), (4, 1, 5, 5)),
        layer: ((2, 3, 5), (4, 1, 5, 5), (4, 1, 5, 5)),
        scan_attention: ((2, 3, 2), (2, 3, 2, 5)),
        linear_scan: ((2, 3, 5), (2, 3, 5)),
    }
    arguments = [torch.randn(s, generator=g) for s in shapes[call]]

    def outputs(given: list[torch.Tensor]) -> torch.Tensor:
        given = [*given[:-1], given[-1].clone().requires_grad_(grad)]
        found = call(*given)
        y = found if isinstance(found, torch.Tensor) else found[0]
        if not grad:
            return y
        (d,) = torch.autograd.grad(y.sum(), given[-1])
        return torch.cat((y.detach().flatten(), d.flatten()))

    expected = outputs(arguments)
    for _ in range(2):
        assert torch.equal(outputs([left_behind(x) for x in arguments]), expected)
