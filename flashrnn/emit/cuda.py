"""CUDA C++ for the schedules of csrc/cuda: the tiling as constexpr lines, the cell, one kernel.

The cell is the struct that the CPU's schedules take: its arithmetic is written for a vector type
S, which is one float32 number per lane here. The file is small and meant to be read.
"""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import emit_cell
from flashrnn.passes.lower import Program

INFERENCE, TRAINING, BACKWARD = "inference", "training", "backward"
DIRECTIONS = (INFERENCE, TRAINING, BACKWARD)


def emit_block(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    warps: int,
    tiles_per_warp: int,
    k_tiles_in_registers: int,
) -> str:
    """The source of one kernel, `run`, of the schedule "a head in one block".

    direction: one of DIRECTIONS. tiles_per_warp: tiles of 8 units; k_tiles_in_registers: of R, the
    others are in shared memory. float32 is multiplied rounded to tf32.
    """
    if direction == BACKWARD:
        schedule, more = "backward", ""
    else:
        schedule, more = "forward", f", {'true' if direction == TRAINING else 'false'}"
    return f"""\
// {program.cell.name}, {direction}, {dtype.name}, a head in one block: generated from the cell's
// equations.
#include "cuda/block_{schedule}.hpp"

using namespace flashrnn;
using Storage = {dtype.cpp};
constexpr int D = {D};
constexpr int warps = {warps};
constexpr int tiles_per_warp = {tiles_per_warp};  // of 8 units
constexpr int k_tiles_in_registers = {k_tiles_in_registers};  // of R; the others in shared memory

{emit_cell(program)}
using Kernel = Block{schedule.capitalize()}<Cell, Storage, D, warps, tiles_per_warp,
                            k_tiles_in_registers{more}>;

FLASHRNN_KERNEL(warps * lanes) run(const Kernel::Arguments arguments) {{
  Kernel(arguments).run();
}}
"""
