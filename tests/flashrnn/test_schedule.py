"""Liveness: the order of the emitted statements."""

import itertools
import random

import pytest
from cells_for_tests import shuffled

from flashrnn import cells
from flashrnn.emit.statements import fuse, statements
from flashrnn.ir import ops
from flashrnn.ir.expression import leaf
from flashrnn.passes.lower import lower
from flashrnn.passes.schedule import peak, schedule

CELLS = [*(getattr(cells, name) for name in cells.__all__), shuffled]


def parts(cell):
    program = lower(cell)
    return program.new_states + program.saved, program.backward


def peaks(roots) -> tuple[int, int]:
    """In written order, and as scheduled."""
    found = statements(roots, fuse(roots))
    order = schedule(found, roots)
    assert sorted(map(id, order)) == sorted(map(id, found)), "every statement once"
    done = set()
    for node in order:
        assert all(a in done for a in found[node] if a in found), "operands come first"
        done.add(node)
    return peak(found, roots), peak({node: found[node] for node in order}, roots)


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_never_more_than_the_written_order(cell) -> None:
    for roots in parts(cell):
        written, scheduled = peaks(roots)
        assert scheduled <= written


@pytest.mark.parametrize(("name", "saves"), [("lstm", 1), ("gru", 2), ("slstm", 2)])
def test_fewer_in_the_backward_pass(name, saves) -> None:
    written, scheduled = peaks(parts(getattr(cells, name))[1])
    assert written - scheduled >= saves


def test_peak_of_a_chain_and_of_a_fan() -> None:
    x, y = leaf("gate", "x"), leaf("gate", "y")
    chain = [ops.tanh(ops.exp(x))]
    assert peaks(chain) == (1, 1)
    # written first, tanh(x) waits beside both inputs for what the other side computes
    e = ops.exp(x)
    fan = [ops.tanh(x), ops.sigmoid(ops.maximum(e, y)), ops.tanh(y)]
    assert peak(statements(fan, {}), fan) == 3
    assert peaks([x, ops.exp(x)]) == (2, 2), "an input that is a result lives to the end"


def test_the_smallest_peak_there_is_on_small_problems() -> None:
    """Against all orders, for random expressions of seven statements."""
    rng = random.Random(0)
    for _ in range(20):
        values = [leaf("gate", n) for n in "xyz"]
        for _ in range(7):
            a, b = rng.sample(values, 2)
            values.append(ops.apply(rng.choice(["sub", "maximum"]), a, b))
        roots = values[-2:]
        found = statements(roots, {})
        best = min(
            peak({n: found[n] for n in order}, roots)
            for order in itertools.permutations(found)
            if all(order.index(a) < k for k, n in enumerate(order) for a in found[n] if a in found)
        )
        assert peaks(roots)[1] == best


def test_the_order_depends_on_the_cell_alone() -> None:
    roots = parts(cells.slstm)[1]
    found = statements(roots, fuse(roots))
    leaf("gate", "made later")
    assert schedule(found, roots) is not schedule(found, roots)
    assert all(a is b for a, b in zip(*(schedule(found, roots) for _ in range(2)), strict=True))
