"""Run an emitted CUDA kernel on this machine: the source for a GPU, with the host's primitives."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from collections.abc import Sequence as Sequence_
from pathlib import Path
from typing import Protocol

import torch
from simt_driver import CSRC, Library, Region

from flashrnn.dims import Dims
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE, Options
from flashrnn.passes.lower import Program
from flashrnn.runtime.arguments import unit_weights
from flashrnn.tiling.cuda import BlockTiling, CudaProblem, source_of

Tensor = torch.Tensor
Argument = Tensor | int | float | None
_ENTRY = """
extern "C" int execute(const simt::Launch* launch, const void* arguments) {
  const auto copy = *static_cast<const Kernel::Arguments*>(arguments);
  return simt::run(*launch, [&] { run(copy); });
}
extern "C" int shared_bytes() { return Kernel::shared_bytes; }
"""


class Issues(Exception):
    """What the execution model found in a kernel."""


class HostKernel:
    """One compiled kernel."""

    def __init__(self, problem: CudaProblem, tiling: BlockTiling, csrc: Path = CSRC) -> None:
        self.problem, self._threads = problem, 32 * tiling.warps
        self._library = Library(source_of(problem, tiling) + _ENTRY, (csrc, CSRC))

    @property
    def shared_bytes(self) -> int:
        return self._library.call("shared_bytes")

    def run(self, order: str, written: Sequence_[Tensor], *arguments: Argument) -> None:
        """With the schedule's Arguments, field by field, each of 8 bytes. Raises Issues."""
        dims = self.problem.dims
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        results = {t.data_ptr() for t in written}
        regions = [
            Region(
                f"argument {i}", t.data_ptr(), t.numel() * t.element_size(),
                "read_write" if t.data_ptr() in results else "read_only",
            )
            for i, t in enumerate(tensors)
        ]  # fmt: skip
        found = self._library.run(
            "execute", pack(arguments), regions, (-(-dims.B // 16), dims.N), (self._threads,),
            shared=self.shared_bytes, order=order, seed=dims.D,
        )  # fmt: skip
        if found:
            raise Issues("\n".join(found))


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

    def run(self, order: str, written: Sequence_[Tensor], *arguments: Argument) -> None: ...


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
        written = [self.states, self.last, *([] if saved is None else [saved])]
        kernel.run(
            order, written, self.wx, *self.wx.stride()[:-1], recurrent, self.bias, self.weights,
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
        written = [self.d_gates, self.d_initial]
        written += [] if self.d_weights is None else [self.d_weights]
        kernel.run(
            order, written, self.r, self.weights, self.initial, self.states,
            *self.states.stride()[:-1], self.saved, d_states, *strides, d_last, self.d_gates,
            *self.d_gates.stride()[:-1], self.d_initial, self.d_weights, lengths,
            *self._sizes(options), float(options.gradient_clip), int(options.gradient_cut),
        )  # fmt: skip

    def _sizes(self, options: Options) -> tuple[int, ...]:
        return self.dims.B, self.dims.T, self.dims.N, int(options.reverse)
