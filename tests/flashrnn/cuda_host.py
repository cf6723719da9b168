"""Run an emitted CUDA kernel on this machine: the source for a GPU, with the host's primitives."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from flashrnn.dims import Dims
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE, Options
from flashrnn.passes.lower import Program
from flashrnn.runtime.arguments import unit_weights
from flashrnn.tiling.cuda import BlockTiling, CudaProblem, source_of

CSRC = Path(__file__).parents[2] / "csrc"
ORDERS = {"forward": 0, "backward": 1, "scattered": 2}
Tensor = torch.Tensor
Argument = Tensor | int | float | None
_ENTRY = """
extern "C" void execute(const Kernel::Arguments* a, int blocks_x, int blocks_y, int order) {
  host::execute(blocks_x, blocks_y, warps * lanes, Kernel::shared_bytes, order, [&] { run(*a); });
}
extern "C" int shared_bytes() { return Kernel::shared_bytes; }
"""


class HostKernel:
    """One compiled kernel."""

    def __init__(
        self, problem: CudaProblem, tiling: BlockTiling, folder: Path, csrc: Path = CSRC
    ) -> None:
        self.problem = problem
        source = source_of(problem, tiling) + _ENTRY
        stem = hashlib.sha256(f"{source} {csrc}".encode()).hexdigest()[:16]
        text, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
        if not library.exists():
            text.write_text(source)
            command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra"]
            command += ["-Werror", "-Wno-unknown-pragmas", f"-I{csrc}", str(text)]
            # kernels that are loaded beside each other keep their own tables of the cell
            command.append("-fno-gnu-unique")
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / "kernel.so"
                subprocess.run([*command, "-o", str(made)], check=True)
                made.replace(library)
        self._library = ctypes.CDLL(str(library))

    @property
    def shared_bytes(self) -> int:
        return int(self._library.shared_bytes())

    def run(self, order: str, *arguments: Argument) -> None:
        """With the schedule's Arguments, field by field, each of 8 bytes."""
        packed = pack(arguments)
        dims = self.problem.dims
        self._library.execute(ctypes.byref(packed), -(-dims.B // 16), dims.N, ORDERS[order])


def pack(arguments: Iterable[Argument]) -> ctypes.Structure:
    """A schedule's Arguments: fields of 8 bytes."""
    fields = [_field(a) for a in arguments]
    names = [(f"f{i}", type(f)) for i, f in enumerate(fields)]
    kind = type("Arguments", (ctypes.Structure,), {"_fields_": names})
    return kind(*fields)


def _field(value: Argument):
    if isinstance(value, float):
        return ctypes.c_double(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


class Kernel(Protocol):
    """One compiled kernel, wherever it runs."""

    problem: CudaProblem

    def run(self, order: str, *arguments: Argument) -> None: ...


class Sequence:
    """A problem's tensors, and its results where a kernel writes them: NaN until then."""

    def __init__(
        self, program: Program, dims: Dims, arguments: dict[str, Tensor], device: str = "cpu"
    ) -> None:
        cell = self.cell = program.cell
        self.dims, self.program = dims, program
        B, T, N, D = dims.B, dims.T, dims.N, dims.D
        data = {k: v.detach().contiguous().to(device) for k, v in arguments.items()}
        self.wx, self.r, self.bias, self.initial = (data[k] for k in ("Wx", "R", "b", "states"))
        self.weights = unit_weights(cell, self.r, data.get("parameters"))
        S, G, Q = len(cell.states), len(cell.gates), len(program.saved)

        def poisoned(*shape: int) -> Tensor:
            return self.wx.new_full(shape, torch.nan)

        self.states, self.last = poisoned(S, B, T, N, D), poisoned(S, B, 1, N, D)
        self.saved = poisoned(T, B, N, Q, D)
        self.d_gates, self.d_initial = poisoned(B, T, G, N, D), poisoned(S, B, 1, N, D)
        K = 0 if self.weights is None else self.weights.shape[0]
        self.d_weights = torch.full((-(-B // 16), K, N, D), torch.nan, device=device) if K else None

    def forward(
        self, kernel: Kernel, order: str, lengths: Tensor | None, options: Options = NONE
    ) -> None:
        if lengths is not None:
            self.states.zero_()
        saved = self.saved if kernel.problem.direction == TRAINING else None
        recurrent = self.r if self.cell.recurrence == DENSE else None
        kernel.run(
            order, self.wx, *self.wx.stride()[:-1], recurrent, self.bias, self.weights,
            self.initial, self.states, *self.states.stride()[:-1], self.last, saved, lengths,
            *self._sizes(options),
        )  # fmt: skip

    def backward(
        self, kernel: Kernel, order: str, lengths: Tensor | None, d_states: Tensor | None,
        d_last: Tensor | None, options: Options = NONE,
    ) -> None:  # fmt: skip
        assert kernel.problem.direction == BACKWARD
        if lengths is not None:
            self.d_gates.zero_()
        strides = (0, 0, 0, 0) if d_states is None else d_states.stride()[:-1]
        kernel.run(
            order, self.r, self.weights, self.initial, self.states, *self.states.stride()[:-1],
            self.saved, d_states, *strides, d_last, self.d_gates, *self.d_gates.stride()[:-1],
            self.d_initial, self.d_weights, lengths, *self._sizes(options),
            float(options.gradient_clip), int(options.gradient_cut),
        )  # fmt: skip

    def _sizes(self, options: Options) -> tuple[int, ...]:
        return self.dims.B, self.dims.T, self.dims.N, int(options.reverse)
