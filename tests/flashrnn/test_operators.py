"""The torch.library operators: schemas, fake tensors, autograd, torch.compile."""

import math
from pathlib import Path

import pytest
import torch
from problems import problem
from torch._subclasses.fake_tensor import FakeTensorMode

from flashrnn import flashrnn, layer
from flashrnn.cells import gru, indrnn, lstm, peephole_lstm, slstm

CELLS = [lstm, gru, slstm, peephole_lstm, indrnn]


def operator_arguments(cell):
    p = problem(cell, 2, 3, 2, 5, torch.float64)
    return p["Wx"], p["R"], p["b"], p.get("parameters"), p["states"], cell.key


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
@pytest.mark.parametrize("rest", [(None, math.inf, False, False), ([2, 0], 0.5, True, True)])
def test_opcheck(cell, rest) -> None:
    wx, r, b, parameters, initial, key = operator_arguments(cell)
    rest = (key, None if rest[0] is None else torch.tensor(rest[0]), *rest[1:])
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.recurrence, (wx, r, b, parameters, initial, *rest))
    plain = [None if x is None else x.detach() for x in (wx, r, b, parameters, initial)]
    if rest[1] is not None:  # what is saved of steps that a row lacks is never written
        rest = (key, torch.tensor([3, 3]), *rest[2:])
    torch.library.opcheck(ops.recurrence_training, (*plain, *rest))
    states, last, saved = ops.recurrence_training(*plain, *rest)
    need = [True, True, True, parameters is not None, True]
    wx, r, _, parameters, initial = plain
    inputs = (wx, r, parameters, initial, states, saved, torch.ones_like(states), last)
    backward = (*inputs, need, *rest)
    torch.library.opcheck(ops.recurrence_backward, backward)


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
@pytest.mark.parametrize("rest", [(None, math.inf, False, False), ([2, 0], 0.5, True, True)])
def test_opcheck_of_a_layer(cell, rest) -> None:
    _, *weights, key = operator_arguments(cell)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(len(cell.input), 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rest = (key, None if rest[0] is None else torch.tensor(rest[0]), *rest[1:])
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.layer, (x, w, *weights, *rest))
    plain = [None if t is None else t.detach() for t in (x, w, *weights)]
    if rest[1] is not None:  # what is saved of steps that a row lacks is never written
        rest = (key, torch.tensor([3, 3]), *rest[2:])
    torch.library.opcheck(ops.layer_training, (*plain, *rest))
    states, last, saved = ops.layer_training(*plain, *rest)
    d_h = torch.ones(2, 3, 2, 5, dtype=torch.float64)
    x, w, r, _, parameters, initial = plain
    for need in ([True] * 4 + [parameters is not None, True], [False, True] + [False] * 4):
        backward = (x, w, r, parameters, initial, states, saved, d_h, last, need, *rest)
        torch.library.opcheck(ops.layer_backward, backward)


def test_every_operator_is_checked() -> None:
    """By torch.library.opcheck, in some test."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("flashrnn::")]
    assert len(names) >= 6
    tests = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("*.py"))
    missing = [n for n in names if f"opcheck(ops.{n.removeprefix('flashrnn::')}," not in tests]
    assert not missing


@pytest.mark.parametrize("order", ["batch-major", "time-major"])
def test_fake_tensors_have_the_strides_of_real_ones(order) -> None:
    p = {k: v.detach() for k, v in problem(lstm, 3, 4, 2, 5, torch.float32).items()}
    if order == "time-major":
        p["Wx"] = p["Wx"].transpose(0, 1).contiguous().transpose(0, 1)
    real = flashrnn(**p)
    with FakeTensorMode() as mode:
        fake = flashrnn(**{k: mode.from_tensor(v) for k, v in p.items()})
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("cell", [lstm, gru], ids=lambda c: c.name)
def test_compile_without_graph_breaks(cell) -> None:
    def loss(Wx, R, b, states):
        every, last = flashrnn(torch.tanh(Wx), R, b, states, function=cell)
        return every.square().sum() + last[0].sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for B, T in ((2, 3), (4, 6)):
        arguments = list(problem(cell, B, T, 2, 5, torch.float64).values())
        expected, got = loss(*arguments), compiled(*arguments)
        torch.testing.assert_close(got, expected)
        for a, b in zip(
            torch.autograd.grad(got, arguments),
            torch.autograd.grad(expected, arguments),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_compiled_layer() -> None:
    p = problem(lstm, 2, 3, 2, 5, torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, w, p["R"], p["b"], p["states"])
    compiled = torch.compile(lambda *a: layer(*a)[0].sum(), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(layer(*inputs)[0].sum(), inputs)
    for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_no_graph_is_kept_without_gradients() -> None:
    arguments = problem(lstm, 1, 2, 1, 3, torch.float32)
    with torch.no_grad():
        assert not flashrnn(**arguments)[0].requires_grad
    assert not flashrnn(**{k: v.detach() for k, v in arguments.items()})[0].requires_grad
    assert flashrnn(**arguments)[0].requires_grad
