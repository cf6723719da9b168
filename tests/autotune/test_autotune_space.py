"""From a model to ranked candidates, the default among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from autotune.device import Device
from autotune.space import Check, Config, Runner, called, candidates
from constrint import Model


@dataclass
class Grid:
    """All pairs (a, b) of 1..3 with a*b <= limit."""

    limit: int = 4
    preset: dict[str, int] | None = field(default_factory=lambda: {"a": 1, "b": 1})
    price: Callable[[Config], float] = lambda config: 10.0 * config["a"] + config["b"]
    name: str = "grid"

    def problem(self) -> dict[str, int | str]:
        return {}

    def model(self, device: Device) -> Model:
        model = Model("grid")
        a, b = (model.int_var(name, range(1, 4)) for name in "ab")
        model.add(a * b <= self.limit, name="area")
        return model

    def cost(self, config: Config, device: Device) -> float:
        return self.price(config)

    def default(self, device: Device) -> dict[str, int] | None:
        return self.preset

    def build(self, config: Config) -> None:
        raise NotImplementedError

    def load(self, config: Config) -> Runner:
        raise NotImplementedError

    def describe(self, config: Config) -> str:
        return str(config)


def pairs(grid: Grid) -> list[tuple[int, int]]:
    space = candidates({0: grid}, Device.current())
    return [(c.config["a"], c.config["b"]) for c in space.candidates]


def test_all_solutions_the_cheapest_first() -> None:
    assert pairs(Grid()) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    assert pairs(Grid(price=lambda c: -c["b"]))[0] == (1, 3)
    space = candidates({0: Grid()}, Device.current())
    assert space.feasible == 6 and space.solve_seconds > 0
    assert [c.estimate for c in space.candidates] == [11, 12, 13, 21, 22, 31]


def test_the_default_is_found_among_the_solutions() -> None:
    space = candidates({0: Grid(preset={"a": 2, "b": 2})}, Device.current())
    assert space.candidates[space.default].config == {"a": 2, "b": 2}
    assert len(space.candidates) == 6


def test_a_default_may_leave_out_what_follows() -> None:
    space = candidates({0: Grid(preset={"a": 2})}, Device.current())
    assert space.candidates[space.default].config == {"a": 2, "b": 1}


@pytest.mark.parametrize("limit", [4, 0])
def test_a_default_outside_the_model_is_a_candidate_still(limit: int) -> None:
    space = candidates({0: Grid(limit, preset={"a": 3, "b": 3})}, Device.current())
    assert space.feasible == (6 if limit else 0)
    assert len(space.candidates) == space.feasible + 1
    assert space.candidates[space.default].config == {"a": 3, "b": 3}


def test_the_best_begin_with_the_default_and_list_it_once() -> None:
    space = candidates({0: Grid(preset={"a": 2, "b": 2})}, Device.current())
    assert space.best(2) == [4, 0, 1]
    assert space.best(5) == [4, 0, 1, 2, 3]
    assert space.best(100) == [4, 0, 1, 2, 3, 5]


def test_rivals_are_ranked_together_and_the_best_of_each_takes_part() -> None:
    slow = Grid(1, None, lambda config: 100.0, "grid, slow")
    rivals = {3: slow, 5: Grid(preset={"a": 2, "b": 2}, name="grid, quick")}
    space = candidates(rivals, Device.current())
    assert space.feasible == 7
    assert [c.of for c in space.candidates] == [5] * 6 + [3]
    assert space.candidates[space.default].of == 5, "the other says that it is not used"
    assert space.best(2) == [4, 0, 6, 1], "the default, one of each, and two"
    assert called(rivals) == "grid, slow or quick"
    assert called({0: slow}) == "grid, slow"


def test_an_estimate_that_is_no_number_ranks_last() -> None:
    grid = Grid(price=lambda c: float("nan") if c["a"] == 1 else c["b"])
    assert pairs(grid)[:3] == [(2, 1), (3, 1), (2, 2)]


def test_a_check_passes_up_to_its_bound() -> None:
    assert Check(1e-6, 1e-6, "error").ok
    assert not Check(2e-6, 1e-6, "error").ok
    assert not Check(float("nan"), 1e-6, "error").ok
