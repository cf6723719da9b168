"""CP-SAT as a second opinion: the same solutions, the same optimum."""

import pytest
from constrint_models import as_set, models, objectives, satisfied_models
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from constrint import Infeasible, Model, ModelError, TimeLimit
from constrint.clock import Clock
from constrint.cpsat import all_solutions_cpsat
from constrint.evaluate import value

# Seconds after which CP-SAT, which can search a small model without end, is not asked further.
PATIENCE = 10.0
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check_against_cpsat(model, data):
    domains = {v: v.domain for v in model.variables.values()}
    leaves = [leaf for rule in model.rules for leaf in rule.leaves]
    ours = as_set(model.solutions())
    assume(len(ours) <= 40)
    try:
        theirs = as_set(all_solutions_cpsat(domains, leaves, Clock(PATIENCE)))
    except (ModelError, TimeLimit):  # a part of the model is beyond CP-SAT's 62 bits
        assume(False)
    assert ours == theirs
    model.prefer((data.draw(objectives(model)), 1))
    try:
        best = model.solve(engine="cpsat", time_limit=PATIENCE)
    except Infeasible:
        assert not ours
        return
    except (ModelError, TimeLimit):
        assume(False)
    assume(best.optimal)
    preferred = model.objectives[0][0]
    assert value(preferred, best) == value(preferred, model.solve())


@settings(max_examples=100, **QUIET)
@given(st.one_of(models(), satisfied_models()), st.data())
def test_cpsat_agrees(model, data):
    check_against_cpsat(model, data)


@pytest.mark.slow
@settings(max_examples=200, **QUIET)
@given(st.one_of(models(), satisfied_models()), st.data())
def test_cpsat_agrees_at_length(model, data):
    check_against_cpsat(model, data)


def test_what_leaves_62_bits_is_refused_by_cpsat_and_solved_by_the_native_engine():
    model = Model()
    a, b = model.int_var("a", [2**40, 3]), model.int_var("b", [2**40, 5])
    model.add(a * b == 2**80)
    assert model.solve() == {"a": 2**40, "b": 2**40}
    with pytest.raises(ModelError, match="engine='native'"):
        model.solve(engine="cpsat")
    with pytest.raises(ModelError, match="'magic'"):
        model.solve(engine="magic")


def test_preferences_are_lexicographic_in_both_engines():
    model = Model()
    a, b = model.int_var("a", range(9)), model.int_var("b", range(9))
    model.add(a + b <= 9)
    model.maximize(a * b)
    model.minimize(a)
    for engine in ("native", "cpsat"):
        assert model.solve(engine=engine) == {"a": 4, "b": 5}
