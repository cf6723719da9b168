"""Random models for the fuzz tests, and the slow and obvious way to solve them."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from hypothesis import strategies as st

from constrint import Model, all_different, cdiv, either, largest_of, member, smallest_of, table
from constrint.evaluate import Undefined, holds, value

NAMES = "abcd"


def domains():
    small = st.integers(-4, 9)
    return st.one_of(
        st.lists(small, min_size=1, max_size=5),
        st.builds(
            lambda low, count, step: range(low, low + count * step, step),
            small,
            st.integers(1, 6),
            st.integers(1, 4),
        ),
        st.sampled_from([[1, 2, 4, 8], [0], [2**40], [2**40, -(2**41), 3]]),
    )


def expressions(variables, depth=2):
    leaf = st.one_of(st.sampled_from(variables), st.integers(-3, 9))
    if depth == 0:
        return leaf
    inner = expressions(variables, depth - 1)
    binary = st.sampled_from(
        [
            lambda a, b: a + b,
            lambda a, b: a - b,
            lambda a, b: a * b,
            lambda a, b: anchored(variables, a) // b,
            lambda a, b: anchored(variables, a) % b,
            lambda a, b: anchored(variables, a) / b,
            lambda a, b: cdiv(anchored(variables, a), b),
            smallest_of,
            largest_of,
        ]
    )
    return st.one_of(
        leaf,
        st.builds(lambda f, a, b: f(a, b), binary, inner, inner),
        st.builds(lambda a: abs(anchored(variables, a)), inner),
        st.builds(lambda a: -anchored(variables, a), inner),
        st.builds(lambda v, e: v**e, st.sampled_from(variables), st.integers(0, 3)),
        st.builds(either, comparisons(variables, inner), inner, inner),
    )


def anchored(variables, value):
    """Two plain integers would be computed by Python, whose division by zero is an error."""
    return value + (variables[0] - variables[0]) if isinstance(value, int) else value


def comparisons(variables, terms):
    def compare(op, left, right):
        left = anchored(variables, left)
        return {
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            "<=": left <= right,
            ">": left > right,
            ">=": left >= right,
            "divides": left.divides(right),
        }[op]

    ops = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "divides"])
    return st.builds(compare, ops, terms, terms)


def constraints(variables, depth=1):
    terms = expressions(variables)
    values = st.lists(st.integers(-4, 12), max_size=4)
    leaf = st.one_of(
        comparisons(variables, terms),
        comparisons(variables, terms),
        st.builds(member, terms, values),
        st.builds(all_different, st.lists(terms, min_size=2, max_size=3)),
        st.lists(st.tuples(st.integers(-2, 4), st.integers(-2, 8)), max_size=6).flatmap(
            lambda rows: st.builds(lambda a, b: table([a, b], rows), terms, terms)
        ),
    )
    if depth == 0:
        return leaf
    inner = constraints(variables, depth - 1)
    return st.one_of(
        leaf,
        leaf,
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
        st.builds(lambda a, b: a.implies(b), inner, inner),
    )


@st.composite
def models(draw, max_rules=4):
    model = Model("fuzz")
    for name in NAMES[: draw(st.integers(1, 4))]:
        model.int_var(name, draw(domains()))
    variables = list(model.variables.values())
    for k in range(draw(st.integers(0, max_rules))):
        name = f"rule {k}" if draw(st.booleans()) else None
        model.add(draw(constraints(variables)), name=name)
    return model


@st.composite
def satisfied_models(draw):
    """Models of a few short constraints that a drawn assignment satisfies, some tightly."""
    model = Model("satisfied")
    at = {}
    for name in NAMES[: draw(st.integers(2, 3))]:
        variable = model.int_var(name, draw(domains()))
        at[name] = draw(st.sampled_from(sorted(variable.domain)))
    variables = list(model.variables.values())
    for _ in range(draw(st.integers(1, 3))):
        left = anchored(variables, draw(expressions(variables, draw(st.integers(1, 2)))))
        try:
            reached = value(left, at)
        except Undefined:
            continue
        if isinstance(reached, Fraction):
            model.add(left * reached.denominator == reached.numerator)
            continue
        slack = draw(st.integers(0, 1))
        model.add(
            draw(
                st.sampled_from(
                    [
                        left == reached,
                        left == reached,
                        left <= reached + slack,
                        left >= reached - slack,
                        left < reached + 1,
                        left != reached + 1 + slack,
                        reached == left,
                    ]
                )
            )
        )
    return model


@st.composite
def objectives(draw, model):
    """A preference over the first and the last variable."""
    first, *_, last = [*model.variables.values()] * 2
    return draw(
        st.sampled_from(
            [first * last - first, first + last, first - last, largest_of(first, last), last]
        )
    )


def brute_force(model):
    """All solutions, by trying every assignment."""
    names = list(model.variables)
    found = []
    for values in product(*(tuple(model.variables[n].domain) for n in names)):
        at = dict(zip(names, values, strict=True))
        if all(holds(rule.constraint, at) is True for rule in model.rules):
            found.append(at)
    return found


def as_set(solutions):
    listed = [tuple(sorted(at.items())) for at in solutions]
    unique = set(listed)
    assert len(unique) == len(listed), "a solution came twice"
    return unique
