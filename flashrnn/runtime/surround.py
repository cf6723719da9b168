"""Call csrc/cpu/layer_*.hpp: a recurrence, the input product before it, the gradients behind it."""

from __future__ import annotations

import ctypes
from array import array
from functools import cache
from typing import Any

import torch

from autotune.device import Cpu, Device
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD, FORWARD, emit_layer
from flashrnn.runtime import launch
from flashrnn.runtime.build import build_soon, open_library
from flashrnn.runtime.launch import Block, Kernel
from flashrnn.runtime.ready import Ready
from flashrnn.runtime.scratch import scratch

Tensor = torch.Tensor

# Rows (steps times batch) of one piece: enough for the products to run at full speed, few enough
# for their gates to stay in cache; and the bytes of gates to stay under where rows are long.
PIECE_ROWS = 2048
PIECE_BYTES = 1 << 20
FEWEST_ROWS = 480


# LayerForwardArguments and LayerBackwardArguments of csrc/cpu/layer_*.hpp behind the recurrence's.
_FORWARD = "run x x_b x_t I w columns steps workspace"
_BACKWARD = (
    "run x x_b x_t I w d_x d_x_b d_x_t d_w d_r d_bias d_weights gates states weights steps "
    "input inputs recurrent recurrents workspace"
)
_TAILS = {FORWARD: _FORWARD.split(), BACKWARD: _BACKWARD.split()}
_AT = {d: {name: i - len(tail) for i, name in enumerate(tail)} for d, tail in _TAILS.items()}

# The addresses that a `Ready` of each direction takes: of the tail, then of the recurrence.
_ADDRESSES = {
    FORWARD: ("x w", "r bias weights initial states last saved lengths"),
    BACKWARD: (
        "x w d_x d_w d_r d_bias d_weights",
        "r weights initial states saved d_states d_last lengths d_initial d_gates",
    ),
}
_POSITIONS = {
    d: (*(_AT[d][name] for name in tail.split()), *launch.positions(d, own))
    for d, (tail, own) in _ADDRESSES.items()
}


def forward(kernel: Kernel, arguments: Block[int], x: Tensor, w: Tensor) -> Ready:
    """A call of a FORWARD kernel on x [B, T, I] and w [G_w, N, D, I], in pieces of the sequence.

    arguments: what kernel.forward gave for no wx; x with its innermost dimension contiguous, w
    altogether. Again on x, w, r, bias, weights, initial, states, last, saved and lengths.
    """
    x_b, x_t, _ = x.stride()
    I = x.shape[2]
    form = (I, PIECE_ROWS)
    around = kernel.surrounds.get(form)
    if around is None:
        B, T, _, _ = kernel.dims
        columns = w.shape[0] * w.shape[1] * w.shape[2]
        steps = _steps(B, T, columns * kernel.dtype.bytes)
        around = _Surround(kernel, FORWARD, I=I, columns=columns, steps=steps)
        kernel.surrounds[form] = around
    at, block = _AT[FORWARD], arguments + around.tail
    block[at["x"]] = x.data_ptr()
    block[at["x_b"]], block[at["x_t"]] = x_b, x_t
    block[at["w"]] = w.data_ptr()
    return Ready(kernel.place_workspace, around.run, block, _POSITIONS[FORWARD])


def backward(
    kernel: Kernel,
    arguments: Block[int],
    x: Tensor | None,
    w: Tensor | None,
    weight_rows: int,
    d_x: Tensor | None,
    d_w: Tensor | None,
    d_r: Tensor | None,
    d_bias: Tensor | None,
    d_weights: Tensor | None,
) -> Ready:
    """A call of a BACKWARD kernel, and what follows from the gradients of its gates.

    arguments: what kernel.backward gave; without d_gates there, a piece of the sequence at a time.
    x and w as in `forward`, None without an input product. Results d_x [B, T, I], d_w like w,
    d_r [G_r, N, D, P], d_bias [G, N, D], d_weights [K, N, D]. Again on x, w, d_x, d_w, d_r, d_bias,
    d_weights, r, weights, initial, states, saved, d_states, d_last, lengths, d_initial, d_gates.
    """
    I = 0 if x is None else x.shape[2]
    form = (x is None, I, d_x is None, d_w is None, d_r is None, PIECE_ROWS)
    around = kernel.surrounds.get(form)
    if around is None:
        around = _Surround(kernel, BACKWARD, I=I, **_backward_sizes(kernel, x, weight_rows))
        kernel.surrounds[form] = around
    at, block = _AT[BACKWARD], arguments + around.tail
    if x is not None:
        block[at["x"]] = x.data_ptr()
        block[at["x_b"]], block[at["x_t"]], _ = x.stride()
    if w is not None:
        block[at["w"]] = w.data_ptr()
    if d_x is not None:
        block[at["d_x"]] = d_x.data_ptr()
        block[at["d_x_b"]], block[at["d_x_t"]], _ = d_x.stride()
    if d_w is not None:
        block[at["d_w"]] = d_w.data_ptr()
    if d_r is not None:
        block[at["d_r"]] = d_r.data_ptr()
    if d_bias is not None:
        block[at["d_bias"]] = d_bias.data_ptr()
    if d_weights is not None:
        block[at["d_weights"]] = d_weights.data_ptr()
    return Ready(kernel.place_workspace, around.run, block, _POSITIONS[BACKWARD])


def _backward_sizes(kernel: Kernel, x: Tensor | None, weight_rows: int) -> dict[str, int]:
    B, T, N, D = kernel.dims
    cell = kernel.cell
    gates = len(cell.gates)
    row_bytes = gates * N * D * kernel.dtype.bytes
    input, recurrent = (_runs(cell.gates, some) for some in (cell.input, cell.product_gates))
    return {
        "gates": gates, "states": len(cell.states), "weights": weight_rows,
        "steps": max(1, T) if x is None else _steps(B, T, row_bytes),
        "input": ctypes.addressof(input), "inputs": len(input) // 3,
        "recurrent": ctypes.addressof(recurrent), "recurrents": len(recurrent) // 3,
    }  # fmt: skip


class _Surround:
    """What surrounds a kernel in layers of one form; sizes: fields that no call changes."""

    def __init__(self, kernel: Kernel, direction: str, **sizes: int) -> None:
        self._dtype = kernel.dtype
        self._entry, self._workspace = _entries(kernel.dtype, direction)
        self._needed: int | None = None  # numbers of workspace
        known = {"run": kernel.library.address, **sizes}
        self.tail = array("q", [known.get(name, 0) for name in _TAILS[direction]])

    def run(self, block: Block[int]) -> None:
        """Run on a whole block; which of its pointers are null, the form says."""
        if self._needed is None:
            self._needed = self._workspace(block.tobytes())
        block[-1] = scratch("layer", self._needed, self._dtype)
        self._entry(block.tobytes())


def _steps(B: int, T: int, row_bytes: int) -> int:
    """Steps of a piece."""
    rows = min(PIECE_ROWS, max(FEWEST_ROWS, PIECE_BYTES // row_bytes))
    count = max(1, round(T * B / rows))
    return max(1, -(-T // count))


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


_libraries: dict[tuple[Dtype, str, str], tuple[Any, Any]] = {}


def _entries(dtype: Dtype, direction: str) -> tuple[Any, Any]:
    """The function of a direction, and the one that says how much workspace it needs."""
    device = Device.current()
    key = (dtype, direction, device.isa)
    known = _libraries.get(key)
    if known is None:
        names = (f"flashrnn_{direction}", f"flashrnn_{direction}_workspace")
        library = open_library(*_source(dtype, direction, device), device, names)
        known = _libraries[key] = getattr(library, names[0]), getattr(library, names[1])
    return known


def compile_soon(dtype: Dtype, direction: str) -> None:
    """Begin to compile what `forward` or `backward` will call, beside other work."""
    device = Device.current()
    if (dtype, direction, device.isa) not in _libraries:
        build_soon(*_source(dtype, direction, device), device)


def _source(dtype: Dtype, direction: str, device: Cpu) -> tuple[str, str]:
    """Name and text."""
    text = emit_layer(dtype, direction, vector_bytes=device.vector_bytes)
    return f"layer-{direction}-{dtype.name}", text
