"""Expressions, simplification, differentiation and what is saved."""

import itertools
import math

import pytest
import torch

from flashrnn.cells import lstm
from flashrnn.errors import CellError
from flashrnn.ir import ops
from flashrnn.ir.expression import INPUT, constant, leaf, walk
from flashrnn.ir.interpreter import evaluate
from flashrnn.passes.differentiate import differentiate
from flashrnn.passes.lower import lower, pointwise_cost
from flashrnn.passes.save import SAVE_COST
from flashrnn.passes.simplify import simplify

X, Y = leaf("gate", "x"), leaf("gate", "y")
EXAMPLES = {
    "add": X + Y,
    "sub": X - Y,
    "mul": X * Y,
    "div": X / Y,
    "neg": -X * Y,
    "exp": ops.exp(X) * Y,
    "sigmoid": ops.sigmoid(X) * Y,
    "tanh": ops.tanh(X) * Y,
    "log_sigmoid": ops.log_sigmoid(X) * Y,
    "maximum": ops.maximum(X, Y) * X,
    "minimum": ops.minimum(X, Y) * X,
    "less": ops.where(X < Y, X * X, Y),
    "less_equal": ops.where(X <= Y, X, Y * Y),
    "equal": ops.where(ops.equal(X, Y), X, X * Y),
    "where": ops.where(X > 0.5, X * Y, X - Y),
    "shared": (X * Y + X) * (X * Y - Y) / (1.5 + X * X),
    "power": (X + Y) ** 3,
    "stop_gradient": ops.stop_gradient(X * Y) * X,
    "clamp": ops.clamp(X, -0.5, 0.5) * Y,
}


def inputs(seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = (torch.randn(50, generator=g, dtype=torch.float64) for _ in range(2))
    return {("gate", n): v.requires_grad_() for n, v in zip("xy", draw, strict=True)}


def test_every_operation_has_an_example() -> None:
    used = {node.op for e in EXAMPLES.values() for node in walk([e])}
    assert used >= set(ops.OPS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_derivatives_agree_with_torch_autograd(name: str) -> None:
    values = inputs()
    (result,) = evaluate([EXAMPLES[name]], values)
    cotangent = torch.randn(50, dtype=torch.float64)
    expected = torch.autograd.grad(
        result, list(values.values()), cotangent, allow_unused=True, materialize_grads=True
    )
    d = leaf("cotangent", "r")
    derived = simplify(differentiate({EXAMPLES[name]: d}, [X, Y]))
    found = evaluate(derived, {**values, ("cotangent", "r"): cotangent})
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.expand(50), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_simplified_expressions_compute_the_same_bits(name: str) -> None:
    (before,), (after,) = (
        evaluate([e], inputs()) for e in (EXAMPLES[name], *simplify([EXAMPLES[name]]))
    )
    assert torch.equal(before, after)


def test_identities() -> None:
    cases = {
        X + 0.0: X, 0.0 + X: X, X - 0.0: X, X * 1.0: X, 1.0 * X: X, X / 1.0: X, -(-X): X,
        X + (-Y): X - Y, (-X) + Y: Y - X, X - (-Y): X + Y, X * -1.0: -X, 0.0 - X: -X,
        constant(2.0) * 3.0: constant(6.0), ops.where(X < Y, X, X): X,
    }  # fmt: skip
    for before, after in cases.items():
        assert simplify([before]) == [after]
    assert simplify([X * 0.0]) != [constant(0.0)], "x may be infinite"


def test_equal_expressions_are_one_object() -> None:
    assert ops.sigmoid(X + Y) is ops.sigmoid(X + Y)
    assert constant(0.0) is not constant(-0.0)


def test_gradient_goes_to_the_first_where_a_maximum_ties() -> None:
    d = leaf("cotangent", "r")
    derived = differentiate({ops.maximum(X, Y): d}, [X, Y])
    one = torch.ones(1, dtype=torch.float64)
    found = evaluate(derived, {("gate", "x"): one, ("gate", "y"): one, ("cotangent", "r"): one})
    assert [v.item() for v in found] == [1.0, 0.0]


def test_nan_survives_maximum_and_minimum() -> None:
    nan, one = torch.tensor([math.nan]), torch.tensor([1.0])
    for op, (a, b) in itertools.product((ops.maximum, ops.minimum), ((nan, one), (one, nan))):
        (value,) = evaluate([op(X, Y)], {("gate", "x"): a, ("gate", "y"): b})
        assert value.isnan().all()


def test_an_expression_has_no_truth_value() -> None:
    with pytest.raises(CellError, match="where"):
        bool(X < Y)


def test_backward_reads_no_gate_and_saving_is_worth_it() -> None:
    program = lower(lstm)
    kinds = {n.kind for n in walk(program.backward) if n.op == INPUT}
    assert kinds <= {"state", "new_state", "saved", "cotangent"}
    # all four activations are needed; saving them beats saving the gates and recomputing
    assert {e.op for e in program.saved} <= {"sigmoid", "tanh"}
    assert len(program.saved) >= 4
    recomputed = pointwise_cost(program.backward)
    assert recomputed < 4 * SAVE_COST + 20
