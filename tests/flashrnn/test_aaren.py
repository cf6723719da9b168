"""The Aaren layers: against attention by its definition; streaming against the parallel pass."""

import pytest
import torch
from scan_problems import error

import flashrnn
from flashrnn.attention import Aaren, AarenBlock, AarenStack
from flashrnn.errors import ShapeError

DOUBLE = torch.float64


def by_definition(layer: Aaren, x, key_bias=None):
    """A masked multi-head attention with the query expanded and the keys formed."""
    B, T, E = x.shape
    N, D = layer.num_heads, layer.head_dim
    heads = (B, T, N, D)
    q = layer.query.expand(B, T, E).reshape(heads).transpose(1, 2)
    k = torch.nn.functional.linear(x, layer.key, key_bias).view(heads).transpose(1, 2)
    v = layer.value(x).view(heads).transpose(1, 2)
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return layer.output(o.transpose(1, 2).reshape(B, T, E))


def test_against_causal_attention_with_one_query() -> None:
    torch.manual_seed(0)
    layer = Aaren(12, 3, dtype=DOUBLE)
    x = torch.randn(2, 20, 12, dtype=DOUBLE, requires_grad=True)
    (y, _), expected = layer(x), by_definition(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    inputs, d = (x, *layer.parameters()), torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, d), torch.autograd.grad(expected, inputs, d), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_key_bias_would_learn_nothing() -> None:
    torch.manual_seed(0)
    layer = Aaren(8, 2, dtype=DOUBLE)
    x = torch.randn(1, 9, 8, dtype=DOUBLE)
    bias = torch.randn(8, dtype=DOUBLE, requires_grad=True)
    y = by_definition(layer, x, bias)
    torch.testing.assert_close(y, layer(x)[0], rtol=1e-12, atol=1e-13)
    assert torch.autograd.grad(y.square().sum(), bias)[0].abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_stack_streams_what_it_computes_in_parallel(dtype) -> None:
    torch.manual_seed(0)
    stack = AarenStack(3, 16, 4, 24, dtype=dtype)
    x = torch.randn(2, 90, 16, dtype=dtype)
    with torch.no_grad():
        y, last = stack(x)
        first, states = stack(x[:, :50])
        outputs = [first]
        for t in range(50, 90):
            o, states = stack.step(x[:, t], states)
            outputs.append(o.unsqueeze(1))
    bound = 100 * torch.finfo(dtype).eps
    assert error(torch.cat(outputs, 1), y) < bound
    for a, b in zip(states, last, strict=True):
        assert all(error(p, q) < bound for p, q in zip(a, b, strict=True))


def test_a_block_is_a_transformers() -> None:
    torch.manual_seed(0)
    block = AarenBlock(8, 2, dtype=DOUBLE)
    x = torch.randn(1, 5, 8, dtype=DOUBLE)
    middle = x + by_definition(block.attention, block.attention_norm(x))
    expected = middle + block.feedforward(block.feedforward_norm(middle))
    torch.testing.assert_close(block(x)[0], expected)
    y, state = block.step(x[:, 0])
    torch.testing.assert_close(y, expected[:, 0])
    assert state.w.shape == (1, 2, 4)


def test_bad_arguments() -> None:
    with pytest.raises(ShapeError, match=r"10.*3"):
        Aaren(10, 3)
    with pytest.raises(ShapeError, match=r"\[B, T, 8\]"):
        Aaren(8, 2)(torch.randn(2, 3, 7))
    with pytest.raises(ShapeError, match="1 states for 2"):
        AarenStack(2, 8, 2)(torch.randn(1, 2, 8), [None])


def test_public_names() -> None:
    names = ("scan_attention", "attention_reduce", "linear_scan", "linear_attention", "Aaren")
    assert all(name in flashrnn.__all__ and callable(getattr(flashrnn, name)) for name in names)
