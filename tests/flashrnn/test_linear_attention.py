"""Linear attention in chunks against a loop over its state."""

import pytest
import torch

from flashrnn.attention import linear_attention, linear_attention_step
from flashrnn.errors import DtypeError, ShapeError

DOUBLE = torch.float64


def problem(B, T, N, K, V, M=0, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=DOUBLE, requires_grad=True)

    decay = (-normal(B, T, N).abs()).detach().requires_grad_()
    prefix = (normal(B, M, N, K), normal(B, M, N, V)) if M else None
    return (normal(B, T, N, K), normal(B, T, N, K), normal(B, T, N, V)), {
        "decay": decay,
        "prefix": prefix,
        "state": normal(B, N, K, V),
    }


def loop(q, k, v, *, prefix=None, decay=None, state=None):
    S = (
        torch.zeros(*q.shape[:1], *q.shape[2:], v.shape[3], dtype=q.dtype)
        if state is None
        else state
    )
    if prefix is not None:
        for t in range(prefix[0].shape[1]):
            S = S + prefix[0][:, t].unsqueeze(-1) * prefix[1][:, t].unsqueeze(-2)
    outputs = []
    for t in range(q.shape[1]):
        if decay is not None:
            S = S * decay[:, t].exp()[..., None, None]
        S = S + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-2) @ S).squeeze(-2))
    return torch.stack(outputs, 1), S


@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (2, 64, 2, 3, 5), (2, 131, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("left_out", [(), ("decay",), ("prefix", "state")], ids=str)
def test_against_a_loop(size, left_out) -> None:
    inputs, options = problem(*size, M=3)
    options = {k: v for k, v in options.items() if k not in left_out}
    got, expected = linear_attention(*inputs, **options), loop(*inputs, **options)
    leaves = [*inputs]
    for x in options.values():
        leaves += x if isinstance(x, tuple) else [x]
    g = torch.Generator().manual_seed(2)
    d = [torch.randn(x.shape, generator=g, dtype=DOUBLE) for x in expected]
    grads = [torch.autograd.grad(x, leaves, d) for x in (got, expected)]
    for a, b in zip((*got, *grads[0]), (*expected, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_gradcheck() -> None:
    inputs, options = problem(1, 5, 2, 2, 3, M=2)
    prefix = options["prefix"]
    assert torch.autograd.gradcheck(
        lambda q, k, v, d, s, a, b: linear_attention(q, k, v, decay=d, state=s, prefix=(a, b)),
        (*inputs, options["decay"], options["state"], *prefix),
    )


def test_streaming_equals_the_chunks() -> None:
    (q, k, v), options = problem(2, 70, 2, 3, 4)
    o, last = linear_attention(q, k, v, decay=options["decay"], state=options["state"])
    state = options["state"]
    for t in range(70):
        y, state = linear_attention_step(state, q[:, t], k[:, t], v[:, t], options["decay"][:, t])
        torch.testing.assert_close(y, o[:, t], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-12)


def test_a_decay_of_minus_infinity_forgets() -> None:
    (q, k, v), options = problem(1, 130, 1, 2, 2)
    with torch.no_grad():
        options["decay"][:, [5, 80]] = -torch.inf
    o = linear_attention(q, k, v, decay=options["decay"])[0]
    late = linear_attention(q[:, 80:], k[:, 80:], v[:, 80:], decay=options["decay"][:, 80:])[0]
    torch.testing.assert_close(o[:, 80:], late)
    assert all(x.isfinite().all() for x in torch.autograd.grad(o.sum(), (q, k, v)))


def test_large_decays_keep_their_digits_in_float32() -> None:
    """Differences of running sums would lose them."""
    (q, k, v), options = problem(1, 192, 1, 4, 4)
    decay = options["decay"].detach() * 0.01
    decay[:, ::16] = -500.0
    exact = loop(q, k, v, decay=decay)[0]
    got = linear_attention(q.float(), k.float(), v.float(), decay=decay.float())[0]
    assert (got - exact).abs().max() / exact.abs().max() < 2e-6


def test_a_column_of_ones_normalises() -> None:
    """Softmax-free attention: weights that sum to one."""
    (q, k, v), _ = problem(1, 40, 1, 3, 2)
    q, k = q.exp(), k.exp()
    o = linear_attention(q, k, torch.cat((v, torch.ones_like(v[..., :1])), -1))[0]
    weights = (q.transpose(1, 2) @ k.transpose(1, 2).mT).tril()
    expected = (weights / weights.sum(-1, keepdim=True)) @ v.transpose(1, 2)
    torch.testing.assert_close(o[..., :-1] / o[..., -1:], expected.transpose(1, 2))


def test_sixteen_bits_and_empty() -> None:
    (q, k, v), _ = problem(1, 100, 2, 4, 4)
    exact = linear_attention(*(x.bfloat16().double() for x in (q, k, v)))[0]
    o, state = linear_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (o.double() - exact).abs().max() / exact.abs().max() < 0.51 * 2**-7
    o, state = linear_attention(q[:, :0], k[:, :0], v[:, :0])
    assert o.shape == (1, 0, 2, 4)
    assert (state == 0).all()


def test_bad_arguments() -> None:
    (q, k, v), options = problem(1, 4, 2, 3, 2, M=2)
    with pytest.raises(ShapeError, match=r"\(1, 4, 2, 3\)"):
        linear_attention(q, k[:, :3], v)
    with pytest.raises(ShapeError, match="state"):
        linear_attention(q, k, v, state=options["state"][:, :1])
    with pytest.raises(ShapeError, match="v of the prefix"):
        linear_attention(q, k, v, prefix=(options["prefix"][0], v))
    with pytest.raises(DtypeError, match="float32"):
        linear_attention(q.float(), k, v)
