"""Conflict sets: they conflict, and no member can be spared."""

import pickle
import time

import pytest
from constrint_models import brute_force, models
from hypothesis import HealthCheck, given, settings

from constrint import Infeasible, Model, TimeLimit
from constrint.explain import Conflict, explained

QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}


def test_the_message_speaks_of_the_users_constraints_and_numbers():
    model = Model("tiling")
    d = model.int_var("d_per_block", [32, 64, 128, 256])
    blocks = model.int_var("blocks", [1, 2, 4])
    model.add(blocks >= 1, name="never at fault")
    model.add(d * blocks == 512, name="D")
    model.add(4 * d * 256 <= 99 * 1024, name="shared bytes")
    with pytest.raises(Infeasible) as caught:
        model.solve()
    assert [rule.name for rule in caught.value.conflict] == ["D", "shared bytes"]
    told = str(caught.value)
    assert "no solution of tiling: these cannot hold together" in told
    assert "D: d_per_block*blocks == 512  [with the others, at the nearest 256 == 512]" in told
    assert "4*d_per_block*256 <= 101376  [with the others, at the nearest 131072 <= 101376]" in told
    assert "blocks in {1, 2, 4}" in told
    assert "never" not in told


def test_the_reason_outlives_the_process_and_the_model():
    model = Model("m")
    x = model.int_var("x", range(3))
    model.add(x > 5, name="too much")
    error = model.explain()
    model.rules.clear()
    assert "too much: x > 5" in str(pickle.loads(pickle.dumps(error)))


def test_an_assumption_can_be_what_is_infeasible():
    model = Model()
    x = model.int_var("x", range(10))
    model.add(x % 2 == 0, name="even")
    assert model.explain() is None
    error = model.explain(assume={"x": 3})
    assert error is not None and "even: x%2 == 0" in str(error)
    with pytest.raises(Infeasible, match="x has no values"):
        model.solve(assume={"x": 12})


def hard_beside(*easy):
    """A rule true of no integers, which takes very long to see, and easy ones."""
    model = Model()
    a, b, c = (model.int_var(name, range(2000)) for name in "abc")
    x = model.int_var("x", range(10))
    model.add((3 * a * b * c) % 9 == 1, name="hard")
    for name, stated in easy:
        model.add(stated(x), name=name)
    return model


def test_a_rule_too_hard_to_judge_does_not_hide_an_irreducible_conflict():
    model = hard_beside(("low", lambda x: x < 3), ("even", lambda x: x % 2 == 0))
    model.add(model.variables["x"] > 5, name="high")
    start = time.monotonic()
    error = model.explain(time_limit=3.0)
    assert [rule.name for rule in error.conflict] == ["low", "high"]
    assert error.irreducible and "may not be needed" not in str(error)
    assert time.monotonic() - start < 60


def test_a_reason_out_of_time_is_a_conflict_that_says_so():
    """The hard rule conflicts alone, but whether the other can be spared takes too long to see."""
    model = hard_beside(("spare", lambda x: x >= 0))
    domains = {v: v.domain for v in model.variables.values()}
    start = time.monotonic()
    found = Conflict(domains, model.rules, 0.5)
    assert found.members == model.rules and not found.irreducible
    told = explained("m", domains, found.members, found.irreducible)
    assert "the smallest set found in time; some may not be needed" in told
    assert time.monotonic() - start < 60
    with pytest.raises(TimeLimit):
        model.explain(time_limit=0.1)


def check_conflict(model):
    if brute_force(model):
        assert model.explain() is None
        return
    error = model.explain()
    rules, members = model.rules, list(error.conflict)
    assert error.irreducible
    assert members and all(rule in rules for rule in members)
    model.rules = members
    assert not brute_force(model)
    for spared in members:
        model.rules = [rule for rule in members if rule is not spared]
        assert brute_force(model), f"{spared} can be spared"


@settings(max_examples=80, **QUIET)
@given(models(max_rules=6))
def test_conflicts_are_irreducible(model):
    check_conflict(model)


@pytest.mark.slow
@settings(max_examples=200, **QUIET)
@given(models(max_rules=6))
def test_conflicts_are_irreducible_at_length(model):
    check_conflict(model)
