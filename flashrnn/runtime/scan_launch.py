"""Which compiled scan serves a call, and how the call is packed: like kernels.py and launch.py."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autotune import cache
from autotune.device import Cpu, Device
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.scan import ATTENTION, LINEAR, emit_scan
from flashrnn.runtime.build import build, build_soon, open_library, primitives_digest
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.launch import Block, empty_sequence
from flashrnn.runtime.memory import address
from flashrnn.runtime.openmp import threading
from flashrnn.runtime.ready import Ready
from flashrnn.runtime.scratch import scratch
from flashrnn.runtime.threads import thread_count
from flashrnn.runtime.toolchain import OPTIMIZED, QUICKLY_OPTIMIZED
from flashrnn.tiling import scan
from flashrnn.tiling.scan import ScanProblem, ScanTiling

Tensor = torch.Tensor

# The arguments of csrc/cpu/scan_*.hpp, 8 bytes each: how many stand before the workspace.
_FIELDS = {
    (ATTENTION, FORWARD): 16,
    (ATTENTION, BACKWARD): 31,
    (LINEAR, FORWARD): 10,
    (LINEAR, BACKWARD): 17,
}

# Numbers in and out below which one thread is done before another wakes up.
PARALLEL_NUMBERS = 1 << 17


@dataclass(frozen=True)
class ScanPlan:
    """A compiled scan and the part of its tiling that is an argument of the call."""

    problem: ScanProblem
    library: Any
    tiling: ScanTiling
    tuned: bool

    def ready(
        self,
        fields: tuple[int, ...],
        offsets: Tensor | None,
        sequences: int,
        T: int,
        reverse: bool,
        sizes: tuple[int, ...],
        positions: tuple[int, ...] = (),
    ) -> Ready:
        """A call with the fields before the workspace, to be made again on what `positions` says.

        T: of the longest sequence; sizes: N and D, or C. offsets: where packed sequences begin,
        int64, or None.
        """
        assert len(fields) == _FIELDS[self.problem.kind, self.problem.direction]
        t, threads = self.tiling, self.problem.threads
        numbers = sequences * T * self.problem.row
        region = threading()[0] if threads > 1 and numbers >= PARALLEL_NUMBERS else 0
        block = array("q", (
            *fields, 0, region, 0 if offsets is None else offsets.data_ptr(), sequences, T,
            int(reverse), *sizes, t.columns_per_core, t.t_per_chunk, threads, t.streaming,
        ))  # fmt: skip
        workspace, real = len(fields), self.problem.real
        needed = self.library.flashrnn_workspace(block.tobytes())

        def place(block: Block[int]) -> None:
            block[workspace] = scratch("scan", needed, real)

        return Ready(place, self._run, block, positions)

    def run(
        self,
        fields: tuple[int, ...],
        offsets: Tensor | None,
        sequences: int,
        T: int,
        reverse: bool,
        sizes: tuple[int, ...],
    ) -> None:
        """Make such a call."""
        self.ready(fields, offsets, sequences, T, reverse, sizes).run()

    def _run(self, block: Block[int]) -> None:
        self.library.flashrnn_run(block.tobytes())


_plans: Kept[tuple[object, ...], tuple[int, ScanPlan]] = Kept()


def plan_for(
    kind: str,
    direction: str,
    storage: Dtype,
    is_complex: bool,
    sequences: int,
    T: int,
    columns: int,
    width: int,
    *,
    training: bool = False,
) -> ScanPlan:
    """The plan for these sizes and the current number of threads.

    training: the BACKWARD one of the same sizes will be wanted, and is compiled beside it.

    T takes part as the next power of two, and at most as many sequences as there are threads, so
    that few problems are solved and tuned.
    """
    threads = thread_count()
    sizes = (is_complex, sequences, T, columns, width, threads)
    key = (kind, direction, storage.name, *sizes, Device.current().isa)
    known = _plans.get(key)
    if known is None or known[0] != cache.generation():
        problem = problem_of(kind, direction, storage, *sizes)
        if training:
            _compile_soon(replace(problem, direction=BACKWARD))
        tiling, tuned = _tiling(problem)
        known = _plans.keep(key, (cache.generation(), load(problem, tiling, tuned)))
    return known[1]


def _compile_soon(problem: ScanProblem) -> None:
    """Begin to compile what `plan_for` will open, beside other work."""
    tiling, _ = _tiling(problem)
    device = Device.current()
    build_soon(_name(problem), source_of(problem, tiling, device), device, _level(problem))


def _tiling(problem: ScanProblem) -> tuple[ScanTiling, bool]:
    """The tuned tiling, or the cost model's; and whether it was tuned."""
    device = Device.current()
    config = cache.lookup(problem_key(problem), device)
    return ScanTiling.of_config(config) if config else scan.default(problem, device), bool(config)


def problem_of(
    kind: str,
    direction: str,
    storage: Dtype,
    is_complex: bool,
    sequences: int,
    T: int,
    columns: int,
    width: int,
    threads: int,
) -> ScanProblem:
    """The problem that serves these sizes: see `plan_for`."""
    rounded = max(scan.BLOCK_ROWS, 1 << max(0, T - 1).bit_length())
    return ScanProblem(
        kind, direction, storage, is_complex, min(sequences, 4 * threads), rounded, columns, width,
        threads,
    )  # fmt: skip


def problem_key(problem: ScanProblem) -> dict[str, int | str]:
    """What a tuned tiling is remembered under."""
    return {
        "kernel": problem.name,
        "dtype": problem.storage.name + (" complex" if problem.is_complex else ""),
        "B": problem.sequences,
        "T": problem.T,
        "N": problem.columns,
        "D": problem.width,
        "threads": problem.threads,
        "source": primitives_digest(),
    }


def source_of(problem: ScanProblem, tiling: ScanTiling, device: Cpu) -> str:
    """The C++ that is compiled for this tiling."""
    return emit_scan(
        problem.kind,
        problem.direction,
        problem.storage,
        problem.real,
        is_complex=problem.is_complex,
        vector_bytes=device.vector_bytes,
        vectors_per_panel=tiling.vectors_per_panel,
        heads_per_panel=tiling.heads_per_panel,
        streaming=bool(tiling.streaming),
        bytes_ahead=scan.ahead_bytes(problem) if tiling.fetch_ahead else 0,
    )


def compiled(problem: ScanProblem, tiling: ScanTiling) -> Path:
    """The library of this tiling, compiled unless an earlier run did."""
    device = Device.current()
    return build(_name(problem), source_of(problem, tiling, device), device, _level(problem))


def load(problem: ScanProblem, tiling: ScanTiling, tuned: bool) -> ScanPlan:
    """Compile if need be, and open the library."""
    device = Device.current()
    entries = ("flashrnn_run", "flashrnn_workspace")
    source = source_of(problem, tiling, device)
    library = open_library(_name(problem), source, device, entries, _level(problem))
    return ScanPlan(problem, library, tiling, tuned)


def rows_of(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x [B, T, ...] with every step contiguous, copied if need be, and its fields of a call."""
    if not x.is_contiguous() and x.numel() and not x[0, 0].is_contiguous():
        x = x.contiguous()
    size = 2 if x.is_complex() else 1
    return x, (address(x), x.stride(0) * size, x.stride(1) * size)


def rows_like(like: Tensor) -> Tensor:
    """An uninitialised tensor as `like` [B, T, ...], from the system's memory."""
    return empty_sequence(like, (), tuple(like.shape[2:]))


def _level(problem: ScanProblem) -> str:
    return QUICKLY_OPTIMIZED if problem.kind == ATTENTION else OPTIMIZED


def _name(problem: ScanProblem) -> str:
    words = f"{problem.kind}-{problem.direction}-{problem.storage.name}".replace(" ", "-")
    return words + ("-complex" if problem.is_complex else "")
