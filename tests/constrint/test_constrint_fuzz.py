"""Completeness: random models against trying every assignment."""

import pytest
from constrint_models import as_set, brute_force, models
from hypothesis import HealthCheck, given, settings

from constrint import Infeasible
from constrint.evaluate import value

QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def check_all_solutions(model):
    expected = as_set(brute_force(model))
    assert as_set(model.solutions()) == expected
    space = model.enumerate()
    assert len(space) == len(expected)
    columns = space.columns()
    rows = zip(*(columns[name].tolist() for name in model.variables), strict=True)
    assert {tuple(sorted(zip(model.variables, row, strict=True))) for row in rows} == expected
    if expected:
        assert tuple(sorted(model.solve().items())) in expected
    else:
        with pytest.raises(Infeasible):
            model.solve()


@settings(max_examples=250, **QUIET)
@given(models())
def test_all_solutions_are_those_of_brute_force(model):
    check_all_solutions(model)


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(models())
def test_all_solutions_are_those_of_brute_force_at_length(model):
    check_all_solutions(model)


def check_optimum(model):
    first = next(iter(model.variables.values()))
    last = list(model.variables.values())[-1]
    model.maximize(first * last - first)
    model.minimize(last)
    found = brute_force(model)
    if not found:
        with pytest.raises(Infeasible):
            model.solve()
        return

    def merit(at):
        return tuple(sign * value(node, at) for node, sign in model.objectives)

    assert merit(model.solve()) == min(map(merit, found))


@settings(max_examples=200, **QUIET)
@given(models())
def test_the_optimum_is_that_of_brute_force(model):
    check_optimum(model)


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(models())
def test_the_optimum_is_that_of_brute_force_at_length(model):
    check_optimum(model)
