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
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE, Options
from flashrnn.passes.lower import Program
from flashrnn.runtime.arguments import unit_weights
from flashrnn.tiling import cuda, cuda_spread
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tiling.cuda_spread import SpreadTiling

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
    """One compiled kernel. groups: of blocks at once, where a head is spread over blocks."""

    def __init__(
        self, problem: CudaProblem, tiling: BlockTiling | SpreadTiling, csrc: Path = CSRC,
        groups: int = 1,
    ) -> None:  # fmt: skip
        self.problem, self._tiling, self._groups = problem, tiling, groups
        source = cuda_spread if isinstance(tiling, SpreadTiling) else cuda
        self._library = Library(source.source_of(problem, tiling) + _ENTRY, (csrc, CSRC))

    @property
    def shared_bytes(self) -> int:
        return self._library.call("shared_bytes")

    def run(self, order: str, written: Sequence_[Tensor], *arguments: Argument) -> None:
        """With the schedule's Arguments, field by field, each of 8 bytes. Raises Issues."""
        dims, tiling = self.problem.dims, self._tiling
        if isinstance(tiling, BlockTiling):
            self._launch(order, written, arguments, (-(-dims.B // 16), dims.N), 1)
            return
        items = dims.N * -(-dims.B // 16)
        groups = self._groups if tiling.exchange == GRID else items
        cluster = tiling.blocks if tiling.exchange == CLUSTER else 1
        size = groups * cuda_spread.exchange_bytes(self.problem, tiling)
        shared = torch.zeros(size, dtype=torch.uint8) if tiling.exchange == GRID else None
        for first in range(0, items, groups):
            count = min(groups, items - first)
            arrived = torch.zeros(count, 32).int() if tiling.exchange == GRID else None
            more = [x for x in (shared, arrived) if x is not None]
            self._launch(
                order, (*written, *more), (*arguments, shared, arrived, first),
                (tiling.blocks, count), cluster,
            )  # fmt: skip

    def _launch(
        self, order: str, written: Iterable[Tensor], arguments: Iterable[Argument],
        grid: tuple[int, int], cluster: int,
    ) -> None:  # fmt: skip
        results = {t.data_ptr() for t in written}
        regions = [
            Region(
                f"argument {i}", t.data_ptr(), t.numel() * t.element_size(),
                "read_write" if t.data_ptr() in results else "read_only",
            )
            for i, t in enumerate(arguments)
            if isinstance(t, Tensor)
        ]  # fmt: skip
        found = self._library.run(
            "execute", pack(arguments), regions, grid, (32 * self._tiling.warps,), (cluster,),
            shared=self.shared_bytes, order=order, seed=self.problem.dims.D,
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
