"""Which compiled kernel serves a call: tuned, or chosen by the cost model; loaded once."""

from __future__ import annotations

import ctypes
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.device import Cpu, Device
from autotune.errors import CacheWarning
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import emit_kernel
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.build import build, build_soon, open_library, primitives_digest
from flashrnn.tiling import cpu
from flashrnn.tiling.cpu import CpuProblem, CpuTiling


@dataclass(frozen=True)
class Library:
    """A loaded kernel. run(arguments) and workspace(arguments) take a packed argument block.

    address: where run's machine code lies, for other kernels to call.
    """

    path: str
    run: Any
    workspace: Any
    address: int


@dataclass(frozen=True)
class Plan:
    """A kernel, and the part of its tiling that is an argument of the call.

    tuned: the tiling was remembered from tuning, not chosen by the cost model.
    """

    cell: Cell
    direction: str
    library: Library
    tiling: CpuTiling
    tuned: bool


_plans: dict[object, tuple[int, Plan]] = {}


def plan_for(cell: Cell, direction: str, dtype: Dtype, dims: Dims, threads: int) -> Plan:
    """The plan for these sizes: T takes no part in the choice."""
    device = Device.current()
    key = (cell.key, direction, dtype, dims.B, dims.N, dims.D, threads, device.isa)
    known = _plans.get(key)
    if known is None or known[0] != cache.generation():
        problem = CpuProblem(lower(cell), direction, dtype, dims, threads)
        tiling, tuned = _tiling(problem, device)
        library = load(problem, tiling, device)
        known = cache.generation(), Plan(cell, direction, library, tiling, tuned)
        _plans[key] = known
    return known[1]


def compile_soon(cell: Cell, direction: str, dtype: Dtype, dims: Dims, threads: int) -> None:
    """Begin to compile what `plan_for` will open, beside other work."""
    device = Device.current()
    problem = CpuProblem(lower(cell), direction, dtype, dims, threads)
    tiling, _ = _tiling(problem, device)
    build_soon(_name(problem), source_of(problem, tiling, device), device)


def _tiling(problem: CpuProblem, device: Cpu) -> tuple[CpuTiling, bool]:
    """The tuned tiling, or the cost model's; and whether it was tuned."""
    remembered = _remembered(problem, device)
    return remembered or cpu.default(problem, device), remembered is not None


def _remembered(problem: CpuProblem, device: Device) -> CpuTiling | None:
    config = cache.lookup(problem_key(problem), device)
    if not config:
        return None
    try:
        return CpuTiling.of_config(config)
    except KeyError as error:
        warnings.warn(
            f"ignored a tuned tiling of {problem.program.cell.name} without {error}: "
            "another version wrote it; tune again",
            CacheWarning,
            stacklevel=2,
        )
        return None


def problem_key(problem: CpuProblem) -> dict[str, int | str]:
    """What a tuned tiling is remembered under."""
    dims = problem.dims
    return {
        "kernel": f"{problem.program.cell.key} {problem.direction}",
        "dtype": problem.dtype.name,
        "B": dims.B,
        "N": dims.N,
        "D": dims.D,
        "threads": problem.threads,
        "source": primitives_digest(),
    }


def source_of(problem: CpuProblem, tiling: CpuTiling, device: Cpu) -> str:
    """The C++ that is compiled for this tiling."""
    return emit_kernel(
        problem.program,
        problem.direction,
        problem.dtype,
        vector_bytes=device.vector_bytes,
        b_per_register=tiling.b_per_register,
        d_per_register=tiling.d_per_register,
    )


def compiled(problem: CpuProblem, tiling: CpuTiling, device: Cpu) -> Path:
    """The library of this tiling, compiled unless an earlier run did."""
    return build(_name(problem), source_of(problem, tiling, device), device)


def load(problem: CpuProblem, tiling: CpuTiling, device: Cpu) -> Library:
    """Compile if need be, and open the library."""
    entries = ("flashrnn_run", "flashrnn_workspace")
    library = open_library(_name(problem), source_of(problem, tiling, device), device, entries)
    run, workspace = library.flashrnn_run, library.flashrnn_workspace
    return Library(library._name, run, workspace, ctypes.cast(run, ctypes.c_void_p).value or 0)


def _name(problem: CpuProblem) -> str:
    return f"{problem.program.cell.name}-{problem.direction}-{problem.dtype.name}"
