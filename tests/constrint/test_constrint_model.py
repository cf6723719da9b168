"""What a model does with known problems, with wrong input, and with its own solutions."""

import subprocess
import sys

import pytest

from constrint import (
    ConstrintError,
    Infeasible,
    Model,
    ModelError,
    OperandError,
    all_different,
    either,
    table,
    total,
)


def solved(domains, *rules):
    """The solutions of a model over ``domains`` under ``rules``, each a function of it."""
    model = Model()
    for name, domain in domains.items():
        model.int_var(name, domain)
    for rule in rules:
        model.add(rule(*model.variables.values()))
    return [tuple(at.values()) for at in model.solutions()]


def test_brackets_are_honoured():
    expected = [(1, 3), (2, 2), (3, 1)]
    assert solved({"a": range(1, 9), "b": range(1, 9)}, lambda a, b: 2 * (a + b) == 8) == expected


def test_remainder_by_a_square():
    assert solved({"b": [2, 3]}, lambda b: 38 % (b * b) == 0) == []
    assert solved({"b": [2, 3]}, lambda b: 36 % (b * b) == 0) == [(2,), (3,)]


def test_square_root_of_four_million():
    assert solved({"a": range(5001)}, lambda a: a * a == 4000000) == [(2000,)]


def test_product_zero():
    found = solved({"a": range(-2, 3), "b": range(3)}, lambda a, b: a * b == 0)
    assert sorted(found) == [(-2, 0), (-1, 0), (0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]


@pytest.mark.parametrize(("a", "count"), [(range(1, 3), 4), (range(1, 4), 6)])
def test_subtraction_of_a_product(a, count):
    found = solved(
        {"a": a, "b": [7], "c": range(1, 3), "d": [2]}, lambda a, b, c, d: c >= a - b * d
    )
    assert len(found) == count


def test_a_constant_on_the_left_empties_a_domain():
    assert solved({"a": range(20)}, lambda a: a > 25) == []


def test_constant_constraints():
    assert solved({"a": [1]}, lambda a: False) == []
    assert solved({"a": [1]}, lambda a: True) == [(1,)]


def test_each_solution_comes_once():
    assert solved({"x": [1, 2, 3, 2]}, lambda x: x <= 2) == [(1,), (2,)]


def test_difference():
    found = solved({"a": range(5), "b": range(5)}, lambda a, b: a - b == 2)
    assert found == [(2, 0), (3, 1), (4, 2)]


def test_products_beyond_64_bits():
    found = solved({"a": [2**40, 2**40 - 1], "b": [2**40, 2**40 + 1]}, lambda a, b: a * b == 2**80)
    assert found == [(2**40, 2**40)]


def test_a_division_by_zero_does_not_hold_either_way():
    assert solved({"a": range(1, 3), "b": range(3)}, lambda a, b: a % b == 0) == [
        (1, 1),
        (2, 1),
        (2, 2),
    ]
    assert solved({"a": [1], "b": range(3)}, lambda a, b: ~(a % b == 0)) == [(1, 2)]
    found = solved({"a": [1], "b": range(3)}, lambda a, b: (b == 0) | (a % b == 0))
    assert found == [(1, 0), (1, 1)]


def test_floor_division_and_remainder_of_negatives_are_pythons():
    found = solved(
        {"a": [-7, 7], "b": [-2, 2], "q": range(-4, 5), "r": range(-2, 2)},
        lambda a, b, q, r: q == a // b,
        lambda a, b, q, r: r == a % b,
    )
    assert sorted(found) == [(a, b, a // b, a % b) for a in (-7, 7) for b in (-2, 2)]


def test_exact_quotients():
    found = solved({"a": range(1, 7), "b": range(1, 7)}, lambda a, b: a / b == 3 - b / 2)
    assert found == [(a, b) for a in range(1, 7) for b in range(1, 7) if 2 * a == b * (6 - b)]


def test_sums_tables_and_conditionals():
    found = solved(
        {"a": range(3), "b": range(3), "c": range(3)},
        lambda a, b, c: total([a, b, c]) == 3,
        lambda a, b, c: all_different([a, b, c]),
        lambda a, b, c: table([a, b], [(0, 1), (2, 1), (1, 1)]),
        lambda a, b, c: either(a > b, c, 5) == 0,
    )
    assert found == [(2, 1, 0)]


def test_an_empty_domain_is_infeasible():
    model = Model("empty")
    model.int_var("x", [])
    model.int_var("y", range(3, 3))
    with pytest.raises(Infeasible, match="empty"):
        model.solve()
    assert len(model.enumerate()) == 0


def test_a_model_without_variables():
    assert Model().solve() == {}
    model = Model()
    model.add(False)
    with pytest.raises(Infeasible):
        model.solve()


def test_binding_in_the_users_words():
    model = Model("cpu forward")
    b, v = model.int_var("b", range(1, 9)), model.int_var("v", [1, 2, 4])
    model.add(b * v == 6, name="area")
    model.add(4 * b * v + b + 1 <= 32, name="vector registers")
    model.add(v >= 1)
    first, *rest = model.binding({"b": 3, "v": 2})
    assert str(first) == "vector registers: 4*b*v + b + 1 <= 32 (28 of 32 used)"
    assert (first.left, first.right, first.slack) == (28, 32, 4)
    assert [record.slack for record in rest] == [1, 0]
    assert str(rest[0]) == "v >= 1 (2, at least 1 needed)"
    assert str(rest[1]) == "area: b*v == 6 (both sides are 6)"
    violated = model.check({"b": 8, "v": 2})
    assert [(r.name, r.slack) for r in violated] == [("vector registers", -41), ("area", -10)]


def test_text_has_the_brackets_it_needs():
    model = Model()
    a, b = model.int_var("a", range(9)), model.int_var("b", range(9))
    assert str((a - (b - 1)) * 2 <= -(a % b)) == "(a - (b - 1))*2 <= -(a%b)"
    assert str(~((a < 1) | (b == 2)) & (a != b)) == "not (a < 1 or b == 2) and a != b"
    assert str((a**2) ** b == (-a) ** 2) == "(a**2)**b == (-a)**2"


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (lambda m, x: m.int_var("", range(3)), ModelError, "''"),
        (lambda m, x: m.int_var(7, range(3)), ModelError, "7"),
        (lambda m, x: m.int_var("x", range(3)), ModelError, "'x'"),
        (lambda m, x: m.int_var("y", [1, 2.5]), ModelError, "2.5"),
        (lambda m, x: m.int_var("y", [True]), ModelError, "True"),
        (lambda m, x: m.int_var("y", "12"), ModelError, "'12'"),
        (lambda m, x: m.int_var("y", 12), ModelError, "12"),
        (lambda m, x: m.int_var("y", range(2**63)), ModelError, str(2**63 - 1)),
        (lambda m, x: x + 1.5, OperandError, "1.5"),
        (lambda m, x: x + True, OperandError, "True"),
        (lambda m, x: x == "3", OperandError, "'3'"),
        (lambda m, x: x + (x < 2), OperandError, "x < 2"),
        (lambda m, x: m.add(x), OperandError, "x != 0"),
        (lambda m, x: m.add(x < 1, name=""), ModelError, "''"),
        (lambda m, x: m.add(Model().int_var("z", [1]) < 1), ModelError, "'z'"),
        (lambda m, x: bool(x < 2), OperandError, "a & b"),
        (lambda m, x: 0 <= x <= 1, OperandError, "lo <= x"),
        (lambda m, x: x in [0, 1], OperandError, "truth value"),
        (lambda m, x: table([x], [(1, 2)]), ModelError, r"\(1, 2\)"),
        (lambda m, x: m.divisors_of(0), ModelError, "divisors_of"),
        (lambda m, x: list(m.solutions(limit=-1)), ModelError, "-1"),
        (lambda m, x: m.binding({}), ModelError, "x"),
        (lambda m, x: m.binding({"x": 0.5}), ModelError, "0.5"),
        (lambda m, x: x ** (x / 2), OperandError, "x/2"),
        (lambda m, x: m.add(2 ** (x * 10**6) > 1), ModelError, "2000000"),
    ],
)
def test_wrong_input_names_the_offender(wrong, error, told):
    model = Model()
    x = model.int_var("x", range(3))
    with pytest.raises(error, match=told) as caught:
        wrong(model, x)
    assert isinstance(caught.value, ConstrintError)


def test_import_is_light():
    code = (
        "import sys, constrint; "
        "print([m for m in ('torch', 'ortools', 'networkx', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
