"""Zoneout: units that keep their state for a step (Krueger et al. 2017).

In training masks of ones and zeros are drawn; at inference a state is the expectation of that, a
mean of the old and the new one.
"""

from __future__ import annotations

import numbers

import torch

from flashrnn.errors import OptionError
from flashrnn.ir.cell import Cell

Tensor = torch.Tensor


def rates(cell: Cell, zoneout: float | tuple[float, float]) -> tuple[float, ...]:
    """The rate of each state; zoneout: that of all, or (that of h, that of the memory).

    The memory is every state but h. Raises OptionError.
    """
    if isinstance(zoneout, tuple):
        given: tuple[object, ...] = zoneout
    else:
        given = (zoneout, zoneout) if len(cell.states) > 1 else (zoneout,)
    expected = min(2, len(cell.states))
    real = all(isinstance(p, numbers.Real) and not isinstance(p, bool) for p in given)
    if len(given) != expected or not real or not all(0 <= p <= 1 for p in zoneout_numbers(given)):
        what = "a number from 0 to 1" + (", or two, of h and of the memory" if expected > 1 else "")
        raise OptionError(f"zoneout={zoneout!r} has to be {what}")
    h, *memory = zoneout_numbers(given)
    return (h, *(memory * (len(cell.states) - 1)))


def zoneout_numbers(given: tuple[object, ...]) -> list[float]:
    """The rates as floats."""
    return [float(p) for p in given]  # type: ignore[arg-type]


def masks(
    rates: tuple[float, ...], training: bool, T: int, B: int, N: int, D: int, like: Tensor
) -> Tensor | None:
    """How much of each state stays, [S, B, T, N, D], T outermost in memory; None for nothing.

    All states of the memory share a mask: they belong together.
    """
    if not any(rates):
        return None
    kept = [like.new_full((T, B, N, D), rate) for rate in rates[:2]]
    if training:
        kept = [torch.bernoulli(k) for k in kept]
    return torch.stack([kept[min(s, 1)] for s in range(len(rates))]).transpose(1, 2)
