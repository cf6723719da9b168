"""Random problems for any cell, and how results are held to the reference."""

from __future__ import annotations

import torch

from flashrnn.api import flashrnn
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.tolerance import compare

NAMES = ("Wx", "R", "b", "states", "parameters")


def problem(
    cell: Cell, B: int, T: int, N: int, D: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Arguments of flashrnn(), all requiring gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        x = torch.randn(shape, generator=g, dtype=torch.float64) * scale
        return x.to(dtype).requires_grad_()

    recurrent = (len(cell.recurrent), N, D) + ((D,) if cell.recurrence == DENSE else ())
    made = {
        "Wx": normal(B, T, len(cell.input), N, D),
        "R": normal(*recurrent, scale=D**-0.5),
        "b": normal(len(cell.gates), N, D),
        "states": normal(len(cell.states), B, 1, N, D),
    }
    if "n" in cell.states:  # a stabiliser's normaliser starts at 1 or above
        with torch.no_grad():
            made["states"][cell.states.index("n")].abs_().add_(1.0)
    if cell.parameters:
        made["parameters"] = normal(len(cell.parameters), N, D)
    return made


def cast(arguments: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: v.detach().to(dtype).requires_grad_() for k, v in arguments.items()}


def run(
    cell: Cell, arguments: dict[str, torch.Tensor], backend: str, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Results and all gradients, for random cotangents of every output."""
    states, last = flashrnn(**arguments, function=cell, backend=backend)
    g = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (states, last)]
    loss = sum(((x * c.to(x)).sum() for x, c in zip((states, last), cotangents, strict=True)))
    grads = torch.autograd.grad(loss, list(arguments.values()))
    named = {f"d_{k}": v for k, v in zip(arguments, grads, strict=True)}
    return {"states": states.detach(), "last": last.detach(), **named}


def check(cell: Cell, arguments: dict[str, torch.Tensor]) -> None:
    """The kernels against the float64 reference, by the library's tolerance."""
    got = run(cell, arguments, "cpu")
    exact = run(cell, cast(arguments, torch.float64), "reference")
    eager = run(cell, arguments, "reference")
    for name in got:
        result = compare(name, got[name], exact[name], eager[name])
        assert result.ok, str(result)
