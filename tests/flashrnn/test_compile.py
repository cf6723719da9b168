"""torch.compile: one graph, forward and backward, for any B and T."""

from __future__ import annotations

import pytest
import torch
from problems import problem
from torch._dynamo.testing import CompileCounterWithBackend

import flashrnn
from flashrnn.cells import gru, slstm
from flashrnn.errors import ShapeError

# No size of the first equals another one by chance: torch.compile would take them for the same.
SIZES = [(11, 13), (3, 9), (6, 5)]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def equal_for_all_sizes(function, arguments_of) -> None:
    """Compiled once, the function and its gradients equal the eager ones for each size."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for B, T in SIZES:
        arguments = arguments_of(B, T)
        leaves = [x for x in arguments if x is not None and x.requires_grad]
        expected, got = function(*arguments), compiled(*arguments)
        torch.testing.assert_close(got, expected)
        for a, b in zip(
            torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(a, b)
        graphs.append(counter.frame_count)
    assert graphs[0] > 0 and len(set(graphs)) == 1, f"compiled again for another size: {graphs}"


@pytest.mark.parametrize("cell", [gru, slstm], ids=lambda c: c.name)
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrence(cell, lengths) -> None:
    def arguments_of(B, T):
        ends = torch.arange(B) % T + 1 if lengths else None
        return (*problem(cell, B, T, 2, 5, torch.float64).values(), ends)

    def loss(Wx, R, b, states, ends):
        every, last = flashrnn.flashrnn(torch.tanh(Wx), R, b, states, cell, lengths=ends)
        return every.square().sum() + last[0].sum()

    equal_for_all_sizes(loss, arguments_of)


def test_layer() -> None:
    p = problem(gru, 1, 1, 2, 5, torch.float64)
    w = torch.randn(3, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def loss(x, w, R, b):
        h, last = flashrnn.layer(x, w, R, b, function=gru, reverse=True)
        return h.square().sum() + last.sum()

    def arguments_of(B, T):
        x = torch.randn(B, T, 6, dtype=torch.float64, requires_grad=True)
        return x, w, p["R"], p["b"]

    equal_for_all_sizes(loss, arguments_of)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("LSTM", {"proj_size": 2, "bias": False}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"bidirectional": True}),
        ("SLSTM", {"num_heads": 2}),
    ],
)
def test_modules(kind, options) -> None:
    module = getattr(flashrnn.nn, kind)(5, 8, dtype=torch.float64, **options)

    def loss(x, *_weights):
        output, state = module(x)
        return output.square().sum() + sum(s.sum() for s in state)

    def arguments_of(B, T):
        size = (B, T, 5) if module.batch_first else (T, B, 5)
        return torch.randn(size, dtype=torch.float64, requires_grad=True), *module.parameters()

    equal_for_all_sizes(loss, arguments_of)


def test_inductor_trains_a_module() -> None:
    """The whole way through generated code, beside which the operator is called."""
    module = flashrnn.nn.LSTM(5, 8)
    x = torch.randn(7, 3, 5)
    expected = torch.autograd.grad(module(x)[0].tanh().sum(), list(module.parameters()))
    compiled = torch.compile(module, fullgraph=True)
    for times in (1, 2):  # gradients that shared memory would be added to twice
        compiled(x)[0].tanh().sum().backward()
        for p, g in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, times * g)


def test_lengths_out_of_range_are_found_where_the_graph_runs() -> None:
    p = {k: v.detach() for k, v in problem(gru, 2, 3, 1, 4, torch.float32).items()}
    compiled = torch.compile(
        lambda ends: flashrnn.flashrnn(**p, function=gru, lengths=ends)[0],
        backend="aot_eager",
        fullgraph=True,
    )
    compiled(torch.tensor([3, 1]))
    with pytest.raises(ShapeError, match=r"between 0 and T = 3, got \[4, 1\]"):
        compiled(torch.tensor([4, 1]))
