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
# How the blocks of a head exchange what they computed.
GRID, CLUSTER = "grid", "cluster"
_ENTRY = """
FLASHRNN_KERNEL(warps * lanes) run(const Kernel::Arguments arguments) {
  Kernel(arguments).run();
}
"""


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
    schedule, more = _schedule(direction)
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
{_ENTRY}"""


def emit_spread(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    exchange: str,
    units: int,
    blocks: int,
    warps_n: int,
    warps_k: int,
    sum_parts: int,
    k_tiles_in_registers: int,
    tiles_in_flight: int,
) -> str:
    """The source of one kernel, `run`, of the schedule "a head spread over blocks".

    exchange: GRID or CLUSTER. units: of a block; warps_n, warps_k: over R's columns and terms;
    sum_parts: of the terms whose sums are in shared memory at once, warps_k or 1;
    k_tiles_in_registers: of a warp's part of R, the others are in shared memory;
    tiles_in_flight: of 16 rows, which a block takes in turn.
    """
    schedule, more = _schedule(direction)
    return f"""\
// {program.cell.name}, {direction}, {dtype.name}, a head spread over the blocks of a {exchange}:
// generated from the cell's equations.
#include "cuda/spread_{schedule}.hpp"

using namespace flashrnn;
using Storage = {dtype.cpp};
constexpr int D = {D};
constexpr int units = {units};  // of a block
constexpr int blocks = {blocks};  // of a head
constexpr int warps_n = {warps_n}, warps_k = {warps_k};  // over R's columns, over its terms
constexpr int warps = warps_n * warps_k;
constexpr int sum_parts = {sum_parts};  // of the terms, whose sums are in shared memory at once
// of a warp's part of R; the others are in shared memory
constexpr int k_tiles_in_registers = {k_tiles_in_registers};
constexpr int tiles_in_flight = {tiles_in_flight};  // of 16 rows

{emit_cell(program)}
using Tiling = Spreading<units, blocks, warps_n, warps_k, sum_parts, k_tiles_in_registers,
                         tiles_in_flight>;
using Kernel =
    Spread{schedule.capitalize()}<Cell, Storage, D, Tiling, {exchange.capitalize()}Exchange{more}>;
{_ENTRY}"""


def emit_step(program: Program, direction: str, dtype: Dtype, *, D: int, threads: int) -> str:
    """The source of one kernel, `run`: the pointwise part of one step; R is a library's product."""
    schedule, more = _schedule(direction)
    return f"""\
// {program.cell.name}, {direction}, {dtype.name}, one step: generated from the cell's equations.
#include "cuda/step_{schedule}.hpp"

using namespace flashrnn;
using Storage = {dtype.cpp};
constexpr int D = {D};
constexpr int threads = {threads};

{emit_cell(program)}
using Kernel = Step{schedule.capitalize()}<Cell, Storage, D, threads{more}>;
{_ENTRY.replace("warps * lanes", "threads")}"""


def _schedule(direction: str) -> tuple[str, str]:
    """The schedule's name, and the template argument that only forward ones have."""
    if direction == BACKWARD:
        return "backward", ""
    return "forward", f", {'true' if direction == TRAINING else 'false'}"
