"""Call csrc/cpu/layer.hpp: a recurrence, the input product before it, the gradients behind it."""

from __future__ import annotations

import ctypes
import struct
from functools import cache, lru_cache
from typing import Any

import torch

from autotune.device import Device
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import emit_layer
from flashrnn.ir.cell import Cell
from flashrnn.runtime.build import open_library
from flashrnn.runtime.launch import Kernel, address
from flashrnn.runtime.scratch import scratch

Tensor = torch.Tensor

# Rows (steps times batch) of one piece: enough for the products to run at full speed, few enough
# for their gates to stay in cache; and the bytes of gates to stay under where rows are long.
PIECE_ROWS = 2048
PIECE_BYTES = 1 << 20
FEWEST_ROWS = 480


def forward(kernel: Kernel, arguments: tuple[int, ...], x: Tensor, w: Tensor) -> None:
    """Run a FORWARD kernel on x [B, T, I] and w [G_w, N, D, I], a piece of the sequence at a time.

    arguments: what kernel.forward gave for no wx; x with its innermost dimension contiguous, w
    altogether.
    """
    B, T, I = x.shape
    columns = w.shape[0] * w.shape[1] * w.shape[2]
    steps = _steps(B, T, columns * kernel.dtype.bytes)
    strides = x.stride()
    fields = (
        *(kernel.library.address, x.data_ptr(), strides[0], strides[1], I),
        *(w.data_ptr(), columns, steps),
    )
    _run("forward", arguments, fields, kernel, ("forward", I, steps))


def backward(
    kernel: Kernel,
    arguments: tuple[int, ...],
    cell: Cell,
    x: Tensor | None,
    w: Tensor | None,
    weight_rows: int,
    d_x: Tensor | None,
    d_w: Tensor | None,
    d_r: Tensor | None,
    d_bias: Tensor | None,
    d_weights: Tensor | None,
) -> None:
    """Run a BACKWARD kernel, and what follows from the gradients of its gates.

    arguments: what kernel.backward gave; without d_gates there, a piece of the sequence at a time.
    x and w as in `forward`, None without an input product. Results d_x [B, T, I], d_w like w,
    d_r [G_r, N, D, P], d_bias [G, N, D], d_weights [K, N, D].
    """
    B, T, N, D = kernel.dims
    gates, states, runs = _of_cell(cell)
    if x is None:
        strides: tuple[int, ...] = (0, 0, 0)
        steps = max(1, T)
    else:
        strides = (*x.stride()[:2], x.shape[2])
        steps = _steps(B, T, gates * N * D * kernel.dtype.bytes)
    fields = (
        *(kernel.library.address, address(x), *strides, address(w), address(d_x)),
        *((0, 0) if d_x is None else d_x.stride()[:2]),
        *(address(d_w), address(d_r), address(d_bias), address(d_weights)),
        *(gates, states, weight_rows, steps, *runs),
    )
    asked = ("backward", strides[2], steps, d_x is None, d_w is None, d_r is None)
    _run("backward", arguments, fields, kernel, asked)


def _run(
    direction: str,
    arguments: tuple[int, ...],
    fields: tuple[int, ...],
    kernel: Kernel,
    purpose: tuple[object, ...],
) -> None:
    """Run a direction; purpose: all that decides, with the kernel, how much workspace it needs."""
    layout = _layout(len(arguments) + len(fields) + 1)
    known = kernel.entries.get(direction)
    if known is None:
        known = kernel.entries[direction] = _entries(kernel.dtype, direction)
    entry, workspace = known
    needed = kernel.needed.get(purpose)
    if needed is None:
        needed = kernel.needed[purpose] = workspace(layout.pack(*arguments, *fields, 0))
    entry(layout.pack(*arguments, *fields, scratch("layer", needed, kernel.dtype)))


@lru_cache(maxsize=256)
def _steps(B: int, T: int, row_bytes: int) -> int:
    """Steps of a piece."""
    rows = min(PIECE_ROWS, max(FEWEST_ROWS, PIECE_BYTES // row_bytes))
    count = max(1, round(T * B / rows))
    return max(1, -(-T // count))


@lru_cache(maxsize=256)
def _layout(fields: int) -> struct.Struct:
    return struct.Struct(f"={fields}q")


@lru_cache(maxsize=256)
def _of_cell(cell: Cell) -> tuple[int, int, tuple[int, ...]]:
    """Gates, states, and where the input's gates and R's stand: address and count of the runs."""
    both = (_runs(cell.gates, cell.input), _runs(cell.gates, cell.product_gates))
    where = (n for runs in both for n in (ctypes.addressof(runs), len(runs) // 3))
    return len(cell.gates), len(cell.states), tuple(where)


@cache  # kept for good: kernels hold their addresses
def _runs(gates: tuple[str, ...], chosen: tuple[str, ...]) -> Any:
    """Neighbours in `chosen` that are neighbours in `gates`: (gate, slot, count) each."""
    runs: list[list[int]] = []
    for slot, name in enumerate(chosen):
        gate = gates.index(name)
        if runs and gate == runs[-1][0] + runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([gate, slot, 1])
    return (ctypes.c_int64 * (3 * len(runs)))(*(n for run in runs for n in run))


_ENTRIES = tuple(f"flashrnn_{d}{w}" for d in ("forward", "backward") for w in ("", "_workspace"))
_libraries: dict[tuple[Dtype, str], ctypes.CDLL] = {}


def _entries(dtype: Dtype, direction: str) -> tuple[Any, Any]:
    """The function of a direction, and the one that says how much workspace it needs."""
    device = Device.current()
    key = (dtype, device.isa)
    if key not in _libraries:
        source = emit_layer(dtype, vector_bytes=device.vector_bytes)
        _libraries[key] = open_library(f"layer-{dtype.name}", source, device, _ENTRIES)
    library = _libraries[key]
    return (
        getattr(library, f"flashrnn_{direction}"),
        getattr(library, f"flashrnn_{direction}_workspace"),
    )
