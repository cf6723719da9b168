"""Saturated gates, large states, long sequences.

What such inputs do to float32 no kernel can undo: a GRU's gate of 1e4 r that happens to cancel has
lost its digits before any arithmetic. So eager PyTorch's error is the measure, and the absolute
bound of the tolerance is not asked for.
"""

import pytest
import torch
from problems import Tensors, cast, every_cell, library_cells, problem, run

from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.ir.cell import DENSE
from flashrnn.tolerance import (
    FLOAT32_BOUND,
    FLOAT64_ULP_FLOOR,
    TIMES_EAGER,
    ULP_FLOOR,
    relative_error,
)

Row = tuple[str, float, float]  # what, the kernels' error, eager's


def errors(what: str, got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> Row:
    return what, relative_error(got, exact), relative_error(eager, exact)


def assert_as_eager(table: list[Row], dtype: torch.dtype) -> None:
    floor = FLOAT64_ULP_FLOOR if dtype == torch.float64 else ULP_FLOOR
    for what, mine, theirs in table:
        bound = TIMES_EAGER * theirs + floor * torch.finfo(dtype).eps
        assert mine <= bound, f"{what}: {mine:.1e} exceeds {bound:.1e}"


def three(cell, p: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """The kernels, eager in the same type, and the float64 reference."""
    exact = run(cell, cast(p, torch.float64), "reference")
    return run(cell, p, "cpu"), run(cell, p, "reference"), exact


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [(cell, torch.float32) for cell in every_cell()]
    + [(cell, torch.float64) for cell in (lstm, gru, elman, slstm)],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_gates_near_100_and_states_near_10000(cell, dtype) -> None:
    p = problem(cell, 5, 6, 2, 5, dtype)
    signs = torch.randint(-1, 2, p["Wx"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p["Wx"] += 100 * signs  # the others keep gradients at a scale that errors can be told on
        for s, name in enumerate(cell.states):
            p["states"][s] *= 1e2 if name == "m" else 1e4  # m is a logarithm, beside the gates
    got, eager, exact = three(cell, p)
    for name, x in got.items():
        assert x.isfinite().all(), name
    assert_as_eager([errors(name, got[name], eager[name], exact[name]) for name in got], dtype)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)
def test_every_gate_saturated(cell, sign) -> None:
    """Nothing overflows; the gradients, which hardly exist, are no numbers to compare."""
    p = problem(cell, 5, 6, 2, 5, torch.float32)
    with torch.no_grad():
        p["Wx"] += 100 * sign
    got, _, exact = three(cell, p)
    for name, x in got.items():
        assert x.isfinite().all(), name
    for name in ("states", "last"):
        scale = exact[name].abs().max()
        least = 4 * torch.finfo(torch.float32).tiny  # where the kernels' sigmoid ends
        assert (got[name] - exact[name]).abs().max() <= FLOAT32_BOUND * scale + least, name


# Steps after which errors are told.
AFTER = (16, 256, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("cell", library_cells(), ids=lambda c: c.name)
def test_errors_grow_no_faster_than_eagers(cell, capsys) -> None:
    """Over T = 4,096 steps in float32, and in the gradients at their end."""
    p = problem(cell, 2, AFTER[-1], 1, 8, torch.float32)
    if cell.recurrence != DENSE:  # a unit's own weight above 1 grows without bound
        with torch.no_grad():
            p["R"].clamp_(-0.9, 0.9)
    got, eager, exact = three(cell, p)
    h = [x["states"][0] for x in (got, eager, exact)]
    table = [errors(f"h, {n} steps", *(x[:, :n] for x in h)) for n in AFTER]
    table += [errors(n, got[n], eager[n], exact[n]) for n in got if n != "states"]
    with capsys.disabled():
        print(f"\n{cell.name}: largest error against float64, the kernels' and eager's")
        for what, mine, theirs in table:
            print(f"  {what:14} {mine:.1e} {theirs:.1e}")
    assert_as_eager(table, torch.float32)
