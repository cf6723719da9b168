"""Random problems for any cell, and how results are held to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from cells_for_tests import ALL

from flashrnn import cells
from flashrnn.api import flashrnn
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.tolerance import TIMES_EAGER, Comparison, compare

NAMES = ("Wx", "R", "b", "states", "parameters")
Tensors = dict[str, torch.Tensor]


def library_cells() -> list[Cell]:
    found = (getattr(cells, name) for name in cells.__all__)
    return [cell for cell in found if isinstance(cell, Cell)]


def every_cell() -> list[Cell]:
    """The library's cells, and the throw-away ones for what those may lack."""
    known = library_cells()
    return known + [cell for cell in ALL if cell.name not in {c.name for c in known}]


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


def layer_problem(
    cell: Cell,
    B: int,
    T: int,
    N: int,
    D: int,
    I: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensors:
    """Arguments of layer(), all requiring gradients."""
    p = problem(cell, B, T, N, D, dtype, seed)
    del p["Wx"]
    g = torch.Generator().manual_seed(2 + seed)
    x = torch.randn(B, T, I, generator=g, dtype=torch.float64)
    w = torch.randn(len(cell.input), N, D, I, generator=g, dtype=torch.float64) * I**-0.5
    return {"x": x.to(dtype).requires_grad_(), "W": w.to(dtype).requires_grad_(), **p}


def composed(
    cell: Cell, x: torch.Tensor, W: torch.Tensor, **rest: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """What layer() computes and the other states too: a product, then the reference."""
    wx = torch.einsum("bti,gndi->btgnd", x, W)
    return flashrnn(wx, function=cell, backend="reference", **rest)


def cast(arguments: Tensors, dtype: torch.dtype) -> Tensors:
    return {k: v.detach().to(dtype).requires_grad_() for k, v in arguments.items()}


def cotangents(outputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Random ones in float64, the same for outputs of the same shapes."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in outputs]


def results(
    call: Callable[[Tensors], tuple[torch.Tensor, torch.Tensor]], arguments: Tensors
) -> Tensors:
    """Both outputs of the call, and the gradients of all arguments for random cotangents."""
    outputs = call(arguments)
    pairs = zip(outputs, cotangents(outputs), strict=True)
    loss = sum((x * c.to(x)).sum() for x, c in pairs)
    grads = torch.autograd.grad(loss, list(arguments.values()), materialize_grads=True)
    named = {f"d_{k}": v for k, v in zip(arguments, grads, strict=True)}
    return {"states": outputs[0].detach(), "last": outputs[1].detach(), **named}


def run(cell: Cell, arguments: Tensors, backend: str, **options: object) -> Tensors:
    """Results and all gradients of flashrnn()."""
    return results(lambda a: flashrnn(**a, function=cell, backend=backend, **options), arguments)


def assert_close(got: Tensors, exact: Tensors, eager: Tensors, told: str = "") -> None:
    """By the library's tolerance, tensor by tensor."""
    assert got.keys() == exact.keys()
    for name in got:
        result = compare(name, got[name], exact[name], eager[name])
        assert result.ok, f"{told} {result}"


def check(cell: Cell, arguments: Tensors) -> None:
    """The kernels against the float64 reference, by the library's tolerance."""
    exact = run(cell, cast(arguments, torch.float64), "reference")
    assert_close(run(cell, arguments, "cpu"), exact, run(cell, arguments, "reference"))


# Relative error of gradients in the root mean square, where rounding decides the side of a kink.
KINK_BOUND = 0.25


def compare_at_kinks(
    name: str, got: torch.Tensor, exact: torch.Tensor, eager: torch.Tensor
) -> Comparison:
    """Of a gradient by a cell with a kink (relu, minimum, maximum) whose argument was rounded.

    Where that is near the kink, its derivative is that of either side: a few elements of each row,
    and what R carries back from them, are not near the exact ones, and others in eager torch.
    """

    def error(x: torch.Tensor) -> float:
        relative = (x.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30)
        return relative.nan_to_num(torch.inf).item()

    return Comparison(name, error(got), max(KINK_BOUND, TIMES_EAGER * error(eager)))
