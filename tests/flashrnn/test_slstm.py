"""The stabiliser of the sLSTM: which gradient is exact, and when the published one is.

Our kernels differentiate through m', to the branch that its maximum selected. Published kernels
take m' as a constant and let the clamp of n' pass its gradient; what that drops is
gamma = dm' - c' dc' - n' dn' times the derivative of m', where dc' and dn' hold all that reaches
c' and n'. A loss of h alone gives h' = sigmoid(o) c' / n', whose parts of gamma cancel.
"""

import pytest
import torch
from problems import Tensors, problem

from flashrnn import (
    cell,
    equal,
    exp,
    flashrnn,
    log_sigmoid,
    maximum,
    sigmoid,
    stop_gradient,
    tanh,
    where,
)
from flashrnn.cells import slstm

H, C, NORMALISER, M = range(4)
B, T, N, D = 3, 5, 2, 4


def constant_stabiliser(name: str, clamp):
    """The sLSTM with m' as a constant; clamp(raw) is n'."""

    def equations(g, s):
        a = log_sigmoid(g.f) + s.m
        m = stop_gradient(where(equal(s.n, 0.0), g.i, maximum(g.i, a)))
        i, f = exp(g.i - m), exp(a - m)
        c, n = f * s.c + i * tanh(g.z), clamp(f * s.n + i)
        return {"h": sigmoid(g.o) * c / n, "c": c, "n": n, "m": m}

    equations.__name__ = name
    return cell(gates="i f z o", states="h c n m")(equations)


published = constant_stabiliser(
    "slstm_published", lambda raw: raw + stop_gradient(maximum(raw, 1.0) - raw)
)
# As torch.maximum does: operands that tie get half of the gradient each.
tied = constant_stabiliser(
    "slstm_tied", lambda raw: 0.5 * maximum(raw, 1.0) + 0.5 * maximum(1.0, raw)
)


def start(n: float | None) -> Tensors:
    """A problem whose normaliser starts at n, or at random above 1."""
    p = problem(slstm, B, T, N, D, torch.float64)
    if n is not None:
        with torch.no_grad():
            p["states"][NORMALISER] = n
    return p


def gradients(function, p: Tensors, weights: tuple[float, ...], backend: str = "reference"):
    """Of the weighted sum of states, each times a random cotangent; what n starts at stays out."""
    g = torch.Generator().manual_seed(3)
    states, _ = flashrnn(**p, function=function, backend=backend)
    d = torch.randn(states.shape, generator=g, dtype=torch.float64)
    loss = sum(w * (x * c).sum() for w, x, c in zip(weights, states, d, strict=True))
    *grads, d_states = torch.autograd.grad(loss, list(p.values()))
    return (*grads, d_states[[H, C, M]])


def difference(xs, ys) -> float:
    return max((x - y).abs().max().item() for x, y in zip(xs, ys, strict=True))


H_ALONE, ALL_FOUR = (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("n", [None, 0.0, 0.5])
def test_the_kernels_are_exact_for_cotangents_on_all_four_states(n) -> None:
    """n itself is held where it starts at 0, since the branch changes there."""
    p = start(n)
    held = p.pop("states").detach()

    def run(h, c, m, *rest):
        states = torch.stack((h, c, held[NORMALISER], m))
        arguments = dict(zip(p, rest, strict=True))
        return flashrnn(**arguments, states=states, function=slstm, backend="cpu")

    free = [held[s].clone().requires_grad_() for s in (H, C, M)]
    assert torch.autograd.gradcheck(run, (*free, *p.values()))


@pytest.mark.parametrize("weights", [H_ALONE, ALL_FOUR])
@pytest.mark.parametrize("n", [None, 0.0])
def test_the_kernels_equal_automatic_differentiation(n, weights) -> None:
    ours, theirs = (gradients(slstm, start(n), weights, b) for b in ("cpu", "reference"))
    assert difference(ours, theirs) < 1e-11


@pytest.mark.parametrize("n", [None, 0.0])
def test_a_constant_stabiliser_is_exact_for_h_alone(n) -> None:
    exact, constant = (gradients(f, start(n), H_ALONE) for f in (slstm, published))
    assert difference(exact, constant) < 1e-11


@pytest.mark.parametrize("weights", [(0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), ALL_FOUR])
def test_a_constant_stabiliser_is_wrong_for_other_states(weights) -> None:
    exact, constant = (gradients(f, start(None), weights) for f in (slstm, published))
    assert difference(exact, constant) > 0.1


def test_a_constant_stabiliser_is_wrong_with_a_frameworks_tie_rule() -> None:
    """In the first step from n = 0 the clamp's operands tie: f' n + i' = 1."""
    exact, constant = (gradients(f, start(0.0), H_ALONE) for f in (slstm, tied))
    assert difference(exact, constant) > 0.1
    exact, constant = (gradients(f, start(None), H_ALONE) for f in (slstm, tied))
    assert difference(exact, constant) < 1e-11, "there is no tie from n > 1"


def test_a_constant_stabiliser_is_wrong_where_the_clamp_binds() -> None:
    """A normaliser between 0 and 1 comes in: m' no longer cancels in c' / n'."""
    exact, constant = (gradients(f, start(0.1), H_ALONE) for f in (slstm, published))
    assert difference(exact, constant) > 1e-2


@pytest.mark.parametrize("weights", [H_ALONE, (0.0, 1.0, 0.0, 0.0), ALL_FOUR])
def test_what_the_constant_drops(weights) -> None:
    """One step: gamma times the derivative of m', to the branch that was selected."""
    p = {k: x[:, :1] if k == "Wx" else x for k, x in start(None).items()}
    p = {k: x.detach().requires_grad_() for k, x in p.items()}
    exact, constant = (gradients(f, p, weights)[0][:, 0] for f in (slstm, published))
    states, _ = flashrnn(**p, function=slstm, backend="reference")
    h, c, n, m = states[:, :, 0].detach()
    d = torch.randn(states.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    d_h, d_c, d_n, d_m = (w * x for w, x in zip(weights, d[:, :, 0], strict=True))
    d_c, d_n = d_c + d_h * h / c, d_n - d_h * h / n
    gamma = d_m - c * d_c - n * d_n
    recurrent = torch.einsum("gndp,bnp->bgnd", p["R"], p["states"][H, :, 0])
    gates = p["Wx"][:, 0] + recurrent + p["b"]
    of_i = (gates[:, 0] == m).double()
    assert 0 < of_i.mean() < 1, "both branches occur"
    of_f = (1 - of_i) * torch.sigmoid(-gates[:, 1])
    torch.testing.assert_close(exact[:, 0] - constant[:, 0], gamma * of_i, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact[:, 1] - constant[:, 1], gamma * of_f, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact[:, 2:], constant[:, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["slstm_B2T5N2D8", "slstm_B3T7N1D16_init"])
def test_gradients_of_initial_states_equal_the_golden_data(name, golden) -> None:
    z = golden(name)
    inputs = [z[k].requires_grad_() for k in ("Wx", "R", "b", "states0")]
    states, _ = flashrnn(*inputs, function=slstm, backend="cpu")
    (got,) = torch.autograd.grad((states[0] * z["cot_h"]).sum(), inputs[3])
    held = z["states0"][NORMALISER] == 0  # the branch changes there
    got, wanted = got.clone(), z["dstates0"].clone()
    got[NORMALISER][held], wanted[NORMALISER][held] = 0.0, 0.0
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
