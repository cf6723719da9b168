"""Branch and bound, time limits, and interruptions."""

import time

import numpy as np
import pytest

from constrint import Infeasible, Model, TimeLimit, largest, largest_of, smallest, smallest_of
from constrint.evaluate import value
from constrint.search import Search


def rugged(seed, high=12):
    """Four variables under a condition without structure, and a preference that has none."""
    a, b, c = (int(n) for n in np.random.default_rng(seed).integers(3, 40, 3))
    model = Model()
    w, x, y, z = (model.int_var(name, range(high)) for name in "wxyz")
    model.add((a * w * x + b * y * y + c * z) % 31 == 4)
    model.add(w * x + y * z <= 3 * high)
    model.minimize((w * a + x * b * y) % 7 + (x + y) // 4)
    model.maximize(w - x + y)
    return model


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tabulated", [0, 1 << 14])
def test_branch_and_bound_finds_what_enumeration_finds(monkeypatch, seed, tabulated):
    model = rugged(seed)
    expected = model.solve()
    monkeypatch.setattr("constrint.optimize.ENUMERATED", 1)
    monkeypatch.setattr("constrint.plan.TABULATED", tabulated)
    monkeypatch.setattr("constrint.search.FIRST_BLOCK", 4)
    monkeypatch.setattr("constrint.search.LAST_BLOCK", 64)
    found = model.solve()

    def merit(at):
        return [sign * value(node, at) for node, sign in model.objectives]

    assert merit(found) == merit(expected)
    model.add(model.objectives[0][0] < 0)
    with pytest.raises(Infeasible):
        model.solve()


def test_the_first_preference_counts_most():
    model = Model()
    a, b = model.int_var("a", range(9)), model.int_var("b", range(9))
    model.add(a + b <= 10)
    model.prefer(largest(a), smallest(b))
    assert model.solve() == {"a": 8, "b": 0}
    assert model.solve(assume={"b": 7}) == {"a": 3, "b": 7}


def hard():
    model = Model()
    v = [model.int_var(f"v{k}", range(300)) for k in range(9)]
    for k in range(6):
        model.add((v[k] * v[k + 1] * v[k + 2] + v[k + 3] * (k + 3)) % 97 == 5)
    model.minimize(sum(x * x for x in v))
    return model


def test_a_time_limit_keeps_the_best_so_far(monkeypatch):
    """The time is up as soon as there is a solution."""
    take = Search._take
    late = []

    def taken(self, columns, rows):
        take(self, columns, rows)
        if self.best is not None:
            late.append(1e6)

    now = time.monotonic
    monkeypatch.setattr(Search, "_take", taken)
    monkeypatch.setattr("constrint.clock.time.monotonic", lambda: now() + sum(late))
    monkeypatch.setattr("constrint.search.LAST_BLOCK", 16)
    monkeypatch.setattr("constrint.search.FIRST_BLOCK", 2)
    found = hard().solve(time_limit=1000.0)
    assert late and not hard().check(found)
    assert not found.optimal


def test_no_solution_in_time_is_an_error():
    model = Model()
    a, b, c = (model.int_var(name, range(2000)) for name in "abc")
    model.add((3 * a * b * c) % 9 == 1)  # true of no integers, which takes long to see
    with pytest.raises(TimeLimit, match=r"0\.1 s"):
        model.solve(time_limit=0.1)
    with pytest.raises(TimeLimit, match="the time is up"):
        model.enumerate(time_limit=0.1)


def test_an_interruption_keeps_the_best_so_far(monkeypatch):
    """Ctrl-C arrives after the first improvement."""
    model = rugged(3)
    monkeypatch.setattr("constrint.optimize.ENUMERATED", 1)
    take = Search._take

    def interrupted(self, columns, rows):
        if self.best is not None:
            raise KeyboardInterrupt
        take(self, columns, rows)

    monkeypatch.setattr(Search, "_take", interrupted)
    monkeypatch.setattr("constrint.search.LAST_BLOCK", 16)
    monkeypatch.setattr("constrint.search.FIRST_BLOCK", 2)
    found = model.solve()
    assert not found.optimal and not model.check(found)


def visited(monkeypatch, model):
    """How many partial assignments branch and bound forms, and the solution."""
    made = []
    run = Search.run

    def noted(self):
        made.append(self)
        return run(self)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "run", noted)
        patch.setattr("constrint.optimize.ENUMERATED", 1)
        found = model.solve()
    return sum(search.visited for search in made), found


def test_bounds_prune_before_all_variables_of_the_objective_have_values(monkeypatch):
    model = Model()
    v = [model.int_var(f"v{k}", range(1, 8)) for k in range(7)]
    model.add(sum(v) % 5 == 3)
    model.minimize(v[0] * v[1] - v[2] + v[3] * v[3] * v[4] + (v[5] - v[6]))
    pruned, found = visited(monkeypatch, model)
    with monkeypatch.context() as patch:
        patch.setattr("constrint.search.least_values", lambda *_: -(10**6))
        unpruned, expected = visited(monkeypatch, model)
    node = model.objectives[0][0]
    assert value(node, found) == value(node, expected)
    assert pruned * 20 < unpruned, (pruned, unpruned)


def test_bounds_beyond_64_bits_prune_nothing_that_is_best(monkeypatch):
    model = Model()
    x, y, z = (model.int_var(name, range(2, 6)) for name in "xyz")
    model.add((x + y + z) % 3 == 1)
    model.minimize(largest_of(x**40, -y) - smallest_of(y**40, 7 * z) * x)
    expected = model.solve()
    _, found = visited(monkeypatch, model)
    node = model.objectives[0][0]
    assert value(node, found) == value(node, expected)


def test_few_solutions_of_a_component_too_large_to_enumerate():
    model = Model()
    v = [model.int_var(f"v{k}", range(100)) for k in range(8)]
    for k in range(7):
        model.add((v[k] + 2 * v[k + 1]) % 3 != 1)  # some 10^14 solutions, all connected
    start = time.process_time()
    found = list(model.solutions(limit=5))
    assert time.process_time() - start < 10
    assert len({tuple(at.items()) for at in found}) == 5
    assert all(list(at) == list(model.variables) and not model.check(at) for at in found)
    assert list(model.solutions(limit=0)) == []
