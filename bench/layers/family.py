"""Every cell of the library as a family to tune, under its name: `bench.layers.family:gru`.

The library registers families for some cells only; a benchmark tunes all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flashrnn.cells
from flashrnn.families import CellFamily
from flashrnn.ir.cell import Cell


def __getattr__(name: str) -> Callable[[], CellFamily]:
    """The factory of a cell's family, without peers."""
    cell = getattr(flashrnn.cells, name, None)
    if not isinstance(cell, Cell):
        raise AttributeError(f"the library has no cell {name!r}")
    return partial(CellFamily, cell, lambda _dims, _dtype: [])
