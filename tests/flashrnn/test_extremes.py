"""Saturated gates, large states, long sequences."""

import pytest
import torch
from problems import assert_close, cast, every_cell, library_cells, problem, run

from flashrnn.ir.cell import DENSE
from flashrnn.tolerance import TIMES_EAGER, ULP_FLOOR, relative_error


@pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_near_100_and_states_near_10000(cell, dtype) -> None:
    p = problem(cell, 5, 6, 2, 5, dtype)
    signs = torch.randint(-1, 2, p["Wx"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p["Wx"] += 100 * signs  # the others keep gradients at a scale that errors can be told on
        for s, name in enumerate(cell.states):
            p["states"][s] *= 1e2 if name == "m" else 1e4  # m is a logarithm, beside the gates
    got, eager = run(cell, p, "cpu"), run(cell, p, "reference")
    for name, x in got.items():
        assert x.isfinite().all(), name
    assert_close(got, run(cell, cast(p, torch.float64), "reference"), eager)


# Steps after which errors are told.
AFTER = (16, 256, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("cell", library_cells(), ids=lambda c: c.name)
def test_errors_grow_no_faster_than_eagers(cell, capsys) -> None:
    """Over T = 4,096 steps in float32, and in the gradients at their end."""
    p = problem(cell, 2, AFTER[-1], 1, 8, torch.float32)
    if cell.recurrence != DENSE:
        with torch.no_grad():
            p["R"].clamp_(-0.9, 0.9)
    ours, eager = run(cell, p, "cpu"), run(cell, p, "reference")
    exact = run(cell, cast(p, torch.float64), "reference")

    def errors(name, part=lambda x: x):
        return [relative_error(part(x[name]), part(exact[name])) for x in (ours, eager)]

    table = [(f"h, {n} steps", *errors("states", lambda x, n=n: x[0, :, :n])) for n in AFTER]
    table += [(name, *errors(name)) for name in exact if name != "states"]
    with capsys.disabled():
        print(f"\n{cell.name}: error against float64, kernels and eager")
        for what, mine, theirs in table:
            print(f"  {what:14} {mine:.1e} {theirs:.1e}")
    for what, mine, theirs in table:
        assert mine <= TIMES_EAGER * theirs + ULP_FLOOR * torch.finfo(torch.float32).eps, what
