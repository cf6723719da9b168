"""Completeness: random models against trying every assignment."""

import pytest
from constrint_models import as_set, brute_force, models, objectives, satisfied_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from constrint import Infeasible
from constrint.contract import Conflict
from constrint.evaluate import value
from constrint.propagate import propagate

QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


# Random models are small: these settings send them down the paths made for large ones.
PATHS = {
    "tables": {},
    "filters": {"plan.TABULATED": 0},
    "blocks": {"plan.TABULATED": 2, "trie.BLOCK": 4, "search.FIRST_BLOCK": 2},
    "pieces": {"split.SMALL": 1, "split.PAIR": 6, "split.LISTED": 4, "plan.LISTED": 4},
    "search": {"optimize.ENUMERATED": 1, "search.FIRST_BLOCK": 2, "search.LAST_BLOCK": 16},
    "search filters": {"optimize.ENUMERATED": 1, "plan.TABULATED": 0},
}


@pytest.fixture(params=PATHS, scope="module")
def path(request):
    with pytest.MonkeyPatch.context() as patch:
        for place, setting in PATHS[request.param].items():
            patch.setattr(f"constrint.{place}", setting)
        yield request.param


def check_all_solutions(model):
    expected = as_set(brute_force(model))
    assert as_set(model.solutions()) == expected
    assert as_set(model.solutions(limit=4096)) == expected
    some = as_set(model.solutions(limit=3))
    assert some <= expected and len(some) == min(3, len(expected))
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


@settings(max_examples=60, **QUIET)
@given(st.one_of(models(), satisfied_models()))
def test_all_solutions_are_those_of_brute_force(path, model):
    check_all_solutions(model)


@pytest.mark.slow
@settings(max_examples=120, **QUIET)
@given(st.one_of(models(), satisfied_models()))
def test_all_solutions_are_those_of_brute_force_at_length(path, model):
    check_all_solutions(model)


def check_propagation(model):
    leaves = [leaf for rule in model.rules for leaf in rule.leaves]
    found = brute_force(model)
    try:
        shrunk = propagate({v: v.domain for v in model.variables.values()}, leaves)
    except Conflict:
        assert found == []
        return
    for at in found:
        for variable, domain in shrunk.items():
            assert at[variable.name] in domain, f"{variable} lost {at[variable.name]}"


@settings(max_examples=120, **QUIET)
@given(st.one_of(models(), satisfied_models(), satisfied_models()))
def test_propagation_loses_no_solution(model):
    check_propagation(model)


@pytest.mark.slow
@settings(max_examples=120, **QUIET)
@given(st.one_of(models(), satisfied_models(), satisfied_models()))
def test_propagation_loses_no_solution_at_length(model):
    check_propagation(model)


@st.composite
def models_with_preferences(draw):
    model = draw(st.one_of(models(), satisfied_models()))
    for _ in range(draw(st.integers(1, 2))):
        model.prefer((draw(objectives(model)), draw(st.sampled_from([1, -1]))))
    return model


def check_optimum(model):
    found = brute_force(model)
    if not found:
        with pytest.raises(Infeasible):
            model.solve()
        return

    def merit(at):
        return tuple(sign * value(node, at) for node, sign in model.objectives)

    assert merit(model.solve()) == min(map(merit, found))


@settings(max_examples=60, **QUIET)
@given(models_with_preferences())
def test_the_optimum_is_that_of_brute_force(path, model):
    check_optimum(model)


@pytest.mark.slow
@settings(max_examples=120, **QUIET)
@given(models_with_preferences())
def test_the_optimum_is_that_of_brute_force_at_length(path, model):
    check_optimum(model)
