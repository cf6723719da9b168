"""The cells beyond torch's own against plain loops in torch, written from the papers."""

import pytest
import torch
from problems import cast, problem, run

from flashrnn import flashrnn
from flashrnn.cells import coupled_lstm, indrnn, minimal_gru, peephole_lstm
from flashrnn.tolerance import compare


def product(r, h):
    """R [G, N, D, P] times h [B, N, P]: [G, B, N, D]."""
    return (r.unsqueeze(1) @ h.unsqueeze(0).unsqueeze(-1)).squeeze(-1)


def peephole(x, r, b, s, p):
    h, c = s
    i, f, z, o = x.transpose(0, 1) + product(r, h) + b.unsqueeze(1)
    new = torch.sigmoid(f + p[1] * c) * c + torch.sigmoid(i + p[0] * c) * torch.tanh(z)
    return [torch.sigmoid(o + p[2] * new) * torch.tanh(new), new]


def coupled(x, r, b, s, _p):
    h, c = s
    f, z, o = x.transpose(0, 1) + product(r, h) + b.unsqueeze(1)
    f = torch.sigmoid(f)
    new = f * c + (1 - f) * torch.tanh(z)
    return [torch.sigmoid(o) * torch.tanh(new), new]


def minimal(x, r, b, s, _p):
    (h,) = s
    n_rec, f = product(r, h) + b[:2].unsqueeze(1)
    f = torch.sigmoid(f + x[:, 0])
    return [(1 - f) * h + f * torch.tanh(x[:, 1] + b[2] + f * n_rec)]


def independent(x, r, b, s, _p):
    return [torch.relu(x[:, 0] + r[0] * s[0] + b[0])]


STEPS = {
    peephole_lstm: peephole,
    coupled_lstm: coupled,
    minimal_gru: minimal,
    indrnn: independent,
}


def loop(step, arguments, seed: int = 1) -> dict[str, torch.Tensor]:
    """What problems.run returns, for the plain loop."""
    wx, r, b, initial = (arguments[k] for k in ("Wx", "R", "b", "states"))
    states, steps = list(initial[:, :, 0]), []
    for t in range(wx.shape[1]):
        states = step(wx[:, t], r, b, states, arguments.get("parameters"))
        steps.append(torch.stack(states))
    results = torch.stack(steps, 2), steps[-1].unsqueeze(2)
    g = torch.Generator().manual_seed(seed)
    loss = sum(
        (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum()
        for x in results
    )
    grads = torch.autograd.grad(loss, list(arguments.values()))
    named = {f"d_{k}": v for k, v in zip(arguments, grads, strict=True)}
    return {"states": results[0].detach(), "last": results[1].detach(), **named}


def hold(cell, shape, dtype) -> None:
    # with seed 0 and one unit a gradient cancels to a 70th of its terms, and so does its precision
    p = problem(cell, *shape, dtype, seed=1)
    got, eager = run(cell, p, "cpu"), loop(STEPS[cell], p)
    exact = loop(STEPS[cell], cast(p, torch.float64))
    for name in got:
        result = compare(name, got[name], exact[name], eager[name])
        assert result.ok, str(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", STEPS, ids=lambda c: c.name)
def test_a_plain_loop(cell, dtype) -> None:
    hold(cell, (3, 5, 2, 17), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 5), (1, 6, 1, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", STEPS, ids=lambda c: c.name)
def test_odd_sizes(cell, dtype, shape) -> None:
    hold(cell, shape, dtype)


@pytest.mark.parametrize("cell", STEPS, ids=lambda c: c.name)
def test_gradcheck(cell) -> None:
    named = problem(cell, 2, 3, 1, 17, torch.float64)

    def call(*tensors):
        return flashrnn(**dict(zip(named, tensors, strict=True)), function=cell, backend="cpu")

    assert torch.autograd.gradcheck(call, tuple(named.values()), fast_mode=True)
