"""Conflict sets: they conflict, and no member can be spared."""

import pickle

import pytest
from constrint_models import brute_force, models
from hypothesis import HealthCheck, given, settings

from constrint import Infeasible, Model

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
    explained = model.explain(assume={"x": 3})
    assert explained is not None and "even: x%2 == 0" in str(explained)
    with pytest.raises(Infeasible, match="x has no values"):
        model.solve(assume={"x": 12})


def check_conflict(model):
    if brute_force(model):
        assert model.explain() is None
        return
    explained = model.explain()
    rules, members = model.rules, list(explained.conflict)
    assert members and all(rule in rules for rule in members)
    model.rules = members
    assert not brute_force(model)
    for spared in members:
        model.rules = [rule for rule in members if rule is not spared]
        assert brute_force(model), f"{spared} can be spared"


@settings(max_examples=200, **QUIET)
@given(models(max_rules=6))
def test_conflicts_are_irreducible(model):
    check_conflict(model)


@pytest.mark.slow
@settings(max_examples=1000, **QUIET)
@given(models(max_rules=6))
def test_conflicts_are_irreducible_at_length(model):
    check_conflict(model)
