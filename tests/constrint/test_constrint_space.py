"""The lazy space: counting, indexing, sampling, neighbours, chunks; and given spaces as models."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from constrint_models import as_set, brute_force, models
from hypothesis import HealthCheck, given, settings

from constrint import Model, ModelError, ParseError

SPACES = sorted((Path(__file__).parent / "data" / "spaces").glob("*.json"))
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_given_spaces_have_their_true_count(path):
    data = json.loads(path.read_text())
    model = Model.from_space(data["params"], data["constraints"])
    space = model.enumerate()
    assert len(space) == data["valid"]
    columns = space.columns()
    assert {len(column) for column in columns.values()} == {data["valid"]}
    for at in space.sample(50, seed=1):
        assert not model.check(at)


@settings(max_examples=100, **QUIET)
@given(models())
def test_a_space_is_consistent_with_itself(model):
    space = model.enumerate()
    listed = list(space)
    assert as_set(listed) == as_set(brute_force(model))
    assert [space[i] for i in range(len(space))] == listed
    assert [space.index(at) for at in listed] == list(range(len(space)))
    columns = space.columns()
    for size in (1, 3, 1000):
        chunks = list(space.chunks(size))
        assert all(len(chunk[n]) <= size for chunk in chunks for n in space.names)
        for name in space.names:
            joined = [value for chunk in chunks for value in chunk[name].tolist()]
            assert joined == columns[name].tolist()
    for at in listed[:5]:
        assert at in space
        near = space.neighbours(at)
        distance_one = [o for o in listed if sum(o[n] != at[n] for n in at) == 1]
        assert as_set(near) == as_set(distance_one)
        outside = {**at, next(iter(at)): 10**30}
        assert outside not in space


def product_of(count):
    model = Model()
    for k in range(count):
        a, b = model.int_var(f"a{k}", range(1, 101)), model.int_var(f"b{k}", range(1, 101))
        model.add(a + b <= 101)
    return model


def test_huge_products_cost_nothing():
    start = time.process_time()
    space = product_of(8).enumerate()
    assert space.count() == 5050**8 > 10**29
    drawn = space.sample(100, seed=3)
    assert len({space.index(at) for at in drawn}) == 100
    assert drawn == space.sample(100, seed=3) != space.sample(100, seed=4)
    assert space[-1] == space[space.count() - 1]
    assert len(next(iter(space.chunks(1000)))["a0"]) == 1000
    assert time.process_time() - start < 10
    with pytest.raises(OverflowError, match="count"):
        len(space)


def test_samples_are_uniform():
    model = Model()
    a, b = model.int_var("a", range(8)), model.int_var("b", range(8))
    model.add(a * b < 12)
    space = model.enumerate()
    hits = np.zeros(len(space))
    for seed in range(4000):
        hits[space.index(space.sample(1, seed)[0])] += 1
    expected = 4000 / len(space)
    chi_squared = ((hits - expected) ** 2 / expected).sum()
    assert chi_squared < len(space) + 5 * (2 * len(space)) ** 0.5


def test_columns_have_the_narrowest_type():
    model = Model()
    for name, high in (("a", 127), ("b", 128), ("c", 40000), ("d", 2**40)):
        model.int_var(name, [0, high])
    kinds = [str(column.dtype) for column in model.enumerate().columns().values()]
    assert kinds == ["int8", "int16", "int32", "int64"]


def test_memory_is_that_of_the_answer():
    model = Model()
    variables = [model.int_var(f"x{k}", range(1, 13)) for k in range(6)]
    model.add(sum(variables[1:], variables[0]) <= 45)
    tracemalloc.start()
    columns = model.enumerate().columns()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    answer = sum(column.nbytes for column in columns.values())
    assert answer > 10e6
    assert peak < 3 * answer


def test_chunks_need_little_memory():
    space = product_of(4).enumerate()
    assert space.count() > 10**14
    tracemalloc.start()
    for k, chunk in enumerate(space.chunks(1 << 16)):
        assert len(chunk["a0"]) == 1 << 16
        if k == 50:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_large_domains():
    model = Model()
    x, y = model.int_var("x", range(10**9)), model.int_var("y", range(10**9))
    model.add(x * y == 1001, x < y)
    assert sorted((at["x"], at["y"]) for at in model.solutions()) == [
        (1, 1001),
        (7, 143),
        (11, 91),
        (13, 77),
    ]
    free = Model()
    free.int_var("z", range(5, 2**40, 3))
    space = free.enumerate()
    assert space[7] == {"z": 26} and space.index({"z": 26}) == 7 and {"z": 27} not in space
    model = Model()
    a, b = model.int_var("a", range(10**6)), model.int_var("b", range(10**6))
    model.add(a * b == 0)
    assert model.count() == 2 * 10**6 - 1


def test_conditions_in_python():
    params = {"x": [1, 2, 3, 4], "y": [0, 1, 2], "z": [5, 10]}
    conditions = [
        "x % 2 == 0 or (y and not z == 10)",
        "0 < x / 2 + 0.5 <= 2.5",
        "(z if y > 1 else 5) == 5 and x not in (7, 9)",
        lambda x, y: x > 1 if y == 0 else True,
        lambda p: p["x"] < 4 or p["y"] != 2,
        lambda x, z: int(x) * 3 < z + 4,
    ]
    names = list(params)
    rows = [(x, y, z) for x in params["x"] for y in params["y"] for z in params["z"]]
    expected = set()
    for row in rows:
        at = dict(zip(names, row, strict=True))
        x, y, z = row
        held = all(eval(c, {}, dict(at)) for c in conditions[:3])
        if held and conditions[3](x, y) and conditions[4](at) and conditions[5](x, z):
            expected.add(tuple(sorted(at.items())))
    assert 0 < len(expected) < len(rows)
    assert as_set(Model.from_space(params, conditions).solutions()) == expected


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        (["x +"], "line 1"),
        (["x < w"], "'w'"),
        (["x.y < 1"], "Attribute"),
        ([3], "3"),
        ([lambda a, b: a], "a, b"),
        ([lambda p: p["w"] == 1], "'w'"),
        ([lambda p: int(p["x"]) == 1], "name its parameters"),
    ],
)
def test_wrong_conditions(conditions, told):
    with pytest.raises((ModelError, ParseError), match=told):
        Model.from_space({"x": [1, 2]}, conditions)


def test_wrong_questions():
    space = product_of(1).enumerate()
    with pytest.raises(ModelError, match="5051"):
        space.sample(5051)
    with pytest.raises(ModelError, match="a0"):
        space.index({"x": 1})
    with pytest.raises(ValueError, match="101"):
        space.index({"a0": 1, "b0": 101})
    with pytest.raises(IndexError, match="5050"):
        space[5050]
    with pytest.raises(ModelError, match="0 rows"):
        next(space.chunks(0))


def test_a_projection_holds_each_assignment_of_some_variables_once():
    model = Model()
    a, b, c, d = (model.int_var(name, range(-3, 9)) for name in "abcd")
    e = model.int_var("e", range(5))
    model.add(a * b == c, (a + d) % 4 == 1, e != 3)
    model.int_var("free", range(10**9))
    model.int_var("one", [7])
    space = model.enumerate()
    rows = {(at["c"], at["a"]) for at in Model.enumerate(without_free(model))}
    onto = space.onto(["c", "a"])
    assert onto.names == ("c", "a") and len(onto) == len(rows)
    assert {tuple(at.values()) for at in onto} == rows
    assert sorted(zip(*(onto.columns()[n].tolist() for n in "ca"), strict=True)) == sorted(rows)
    assert {"c": 0, "a": 0} in onto and {"c": 7, "a": 2} not in onto
    with_others = space.onto(["one", "c", "free", "e", "a", "c"])
    assert with_others.count() == len(rows) * 4 * 10**9
    assert with_others[3]["one"] == 7
    assert space.onto([]).count() == 1
    with pytest.raises(ModelError, match="no variable 'f'"):
        space.onto("f")
    model.add(a > 100)
    assert model.enumerate().onto(["c", "one"]).count() == 0


def without_free(model):
    """The model with so few values for `free` that it can be written out."""
    copy = Model()
    copy.variables = {name: v for name, v in model.variables.items() if name != "free"}
    copy.rules = list(model.rules)
    return copy
