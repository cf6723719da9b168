"""Expressions, simplification, differentiation and what is saved."""

import itertools
import math

import pytest
import torch

from flashrnn import cell
from flashrnn.cells import gru, lstm, slstm
from flashrnn.emit.cpp import emit_cell
from flashrnn.emit.statements import emit_assignments
from flashrnn.errors import CellError
from flashrnn.ir import ops
from flashrnn.ir.expression import CONDITIONS, INPUT, constant, leaf, walk
from flashrnn.ir.interpreter import evaluate
from flashrnn.passes.differentiate import differentiate
from flashrnn.passes.lower import lower, pointwise_cost
from flashrnn.passes.save import SAVE_COST, recomputed
from flashrnn.passes.simplify import drop_stop_gradient, simplify

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


# Points at which every operation is smooth: x and y differ, and neither is near 0.5.
POINTS = [(0.3, 1.1), (-0.7, 0.2), (1.9, -0.4), (-1.2, -2.3)]
STEP = 1e-5
ONE_BY_ONE = {
    op: ops.where(ops.apply(op, X, Y), X * X * Y, X * Y)
    if op in CONDITIONS
    else ops.where(X < Y, X * X, Y * X)
    if op == "where"
    else ops.apply(op, *(X, Y)[: row.arity])
    for op, row in ops.OPS.items()
}


@pytest.mark.parametrize("op", ops.OPS)
def test_derivative_rules_agree_with_finite_differences(op: str) -> None:
    """Central differences in float64 of every row of the table."""
    root = ONE_BY_ONE[op]
    derived = simplify(differentiate({root: constant(1.0)}, [X, Y]))
    for point in POINTS:
        for k, rule in enumerate(derived):
            ends = []
            for sign in (1.0, -1.0):
                moved = [v + sign * STEP * (j == k) for j, v in enumerate(point)]
                ends.append(value(root, *moved))
            slope = (ends[0] - ends[1]) / (2 * STEP)
            expected = 0.0 if op == "stop_gradient" else slope
            assert value(rule, *point) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def value(expression, x: float, y: float) -> float:
    named = {"x": x, "y": y}
    leaves = {("gate", n): torch.tensor(v, dtype=torch.float64) for n, v in named.items()}
    return evaluate([expression], leaves)[0].item()


def test_derivatives_of_clamp_and_where_stop_where_they_must() -> None:
    clamped = simplify(differentiate({ops.clamp(X, -1.0, 1.0): constant(1.0)}, [X]))[0]
    inside = [value(clamped, x, 0.0) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert inside == [0.0, 1.0, 1.0, 1.0, 0.0], "the gradient passes at the bounds"
    chosen = ops.where(X > 0.0, ops.stop_gradient(X) * Y, X)
    d_x, d_y = simplify(differentiate({chosen: constant(1.0)}, [X, Y]))
    assert [(value(d_x, x, 3.0), value(d_y, x, 3.0)) for x in (2.0, -2.0)] == [(0, 2), (1, 0)]


def test_stop_gradient_is_gone_once_derivatives_are_taken() -> None:
    assert drop_stop_gradient([ops.stop_gradient(ops.stop_gradient(X) * Y)]) == [X * Y]


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
        (-X) * Y: -(X * Y), (-X) * (-Y): X * Y, (-X) / Y: -(X / Y), -(X - Y): Y - X,
        X / 4.0: X * 0.25, X / -0.5: X * -2.0, ops.maximum(X, X): X, ops.minimum(X, X): X,
        ops.where(constant(1.0) < 2.0, X, Y): X, ops.where(ops.equal(1.0, 2.0), X, Y): Y,
        ops.exp(constant(0.0)) + X: 1.0 + X, ops.clamp(2.0, 0.0, 1.0) * X: X,
    }  # fmt: skip
    for before, after in cases.items():
        assert simplify([before]) == [after]


def test_what_would_change_a_rounding_stays() -> None:
    for kept in (X * 0.0, X - X, X / X, X / 3.0, X / 1e40, (X + Y) + 1.0, X * 2.0 + Y * 2.0):
        assert simplify([kept]) == [kept]
    undefined = constant(math.inf) - math.inf
    assert simplify([undefined + X]) == [undefined + X], "a constant is never NaN"


def test_mirrored_sums_and_products_become_one() -> None:
    first, second = simplify([X * Y, ops.tanh(Y * X) + (Y * X) * (X * Y)])
    assert second == ops.tanh(first) + first * first
    assert simplify([ops.maximum(X, Y), ops.maximum(Y, X)])[1] == ops.maximum(Y, X), "they tie"


def test_emitted_code_computes_nothing_twice() -> None:
    text = emit_assignments(
        ["out[0]", "out[1]"],
        simplify([ops.tanh(X + Y) * ops.exp(Y), ops.tanh(Y + X) - ops.exp(Y)]),
        {("gate", "x"): "x", ("gate", "y"): "y"},
        {},
        {},
    )
    assert [text.count(word) for word in ("tanh", "exp", "x + y", "y + x")] == [1, 1, 1, 0]


def test_infinite_constants_are_spelled_for_the_compiler() -> None:
    text = emit_assignments(
        ["out"], [ops.clamp(X, -math.inf, math.inf)], {("gate", "x"): "x"}, {}, {}
    )
    assert "S::broadcast(-__builtin_inf())" in text
    assert "S::broadcast(__builtin_inf())" in text


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


def test_what_is_saved_costs_less_than_anything_else() -> None:
    for program in map(lower, (lstm, gru, slstm)):
        assert len(program.instead) == len(program.saved)
        assert all(instead >= SAVE_COST for instead in program.instead)
    # a gate is nowhere else; an activation would need its gate, and itself again
    instead = dict(zip(map(repr, lower(gru).saved), lower(gru).instead, strict=True))
    assert instead["g.n_rec"] == math.inf
    assert instead["sigmoid(g.z)"] == SAVE_COST + ops.OPS["sigmoid"].cost


def test_the_emitted_source_tells_prices() -> None:
    text = emit_cell(lower(slstm))
    assert "// sigmoid(g.o): 16, otherwise 36" in text
    assert "// g.i: 16, no other way" in text
    assert "math::exp<S>(x7);  // recomputed: 14" in text
    again = recomputed(lower(slstm).backward)
    assert f"are recomputed where marked, for {sum(again.values()):g},\n" in text


def test_what_is_emitted_depends_on_no_other_cell() -> None:
    """Expressions are shared between cells, and may be older than their cell."""

    def emitted(a: str, b: str, *older: str) -> str:
        kept = [ops.sigmoid(leaf("gate", name)) for name in older]
        built = cell(gates=f"{a} {b}", states="h")(
            lambda g, s: {"h": ops.sigmoid(getattr(g, a)) * s.h * ops.sigmoid(getattr(g, b))}
        )
        assert len(kept) == 2
        return emit_cell(lower(built)).replace(a, "a").replace(b, "b")

    assert emitted("p1", "p2", "p1", "p2") == emitted("q1", "q2", "q2", "q1")


def test_what_stop_gradient_hid_is_simplified() -> None:
    built = cell(gates="a", states="h")(lambda g, s: {"h": ops.stop_gradient(-g.a) + s.h})
    program = lower(built)
    assert program.new_states == (leaf("state", "h") - leaf("gate", "a"),)
    assert program.backward == (constant(0.0), leaf("cotangent", "h"))
