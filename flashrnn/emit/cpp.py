"""C++ for the CPU schedules of csrc/cpu: a cell's pointwise parts as a struct of inline functions.

The emitted file is small: the tiling as constexpr lines, the cell, and the entry points that
instantiate the schedule. It is meant to be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from flashrnn.dtypes import Dtype
from flashrnn.emit.statements import emit_assignments
from flashrnn.ir.expression import Expression, leaf
from flashrnn.passes.lower import Program
from flashrnn.passes.save import SAVE_COST, recomputed

FORWARD, BACKWARD = "forward", "backward"

# Characters of an expression in a comment.
LONGEST = 50


def emit_kernel(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    vector_bytes: int,
    b_per_register: int,
    d_per_register: int,
) -> str:
    """The source of one kernel. direction: FORWARD or BACKWARD. Sizes as in the tiling."""
    return f"""\
// {program.cell.name}, {direction}, {dtype.name}: generated from the cell's equations.
// Tiling: {b_per_register} rows x {d_per_register} units in registers.
#include "cpu/{direction}.hpp"

using Real = {dtype.cpp};
constexpr int vector_bytes = {vector_bytes};
constexpr int b_per_register = {b_per_register};
constexpr int d_per_register = {d_per_register};

{emit_cell(program)}
using S = flashrnn::Simd<Real, vector_bytes>;
using Kernel = flashrnn::{direction.capitalize()}<Cell, S, b_per_register, d_per_register>;

// Size of the workspace in numbers.
FLASHRNN_EXPORT int64_t flashrnn_workspace(const Kernel::Arguments* arguments) {{
  int64_t needed = 0;
  Kernel(*arguments, nullptr, &needed);
  return needed;
}}

FLASHRNN_EXPORT void flashrnn_run(const Kernel::Arguments* arguments) {{
  Kernel(*arguments, arguments->workspace).run();
}}
"""


def emit_layer(dtype: Dtype, direction: str, *, vector_bytes: int) -> str:
    """The source of what surrounds the recurrence of any cell in a layer, in one direction."""
    name = f"Layer{direction.capitalize()}"
    return f"""\
// The layer around a recurrence, {direction}, {dtype.name}.
#include "cpu/layer_{direction}.hpp"

using namespace flashrnn;
using Real = {dtype.cpp};
using S = Simd<Real, {vector_bytes}>;

FLASHRNN_EXPORT int64_t flashrnn_{direction}_workspace(const {name}Arguments<Real>* arguments) {{
  int64_t needed = 0;
  {name}<S>(*arguments, &needed);
  return needed;
}}

FLASHRNN_EXPORT void flashrnn_{direction}(const {name}Arguments<Real>* arguments) {{
  {name}<S>(*arguments).run();
}}
"""


@lru_cache(maxsize=256)
def emit_cell(program: Program) -> str:
    """The struct that csrc/cpu calls a Cell."""
    cell = program.cell
    recurrent = cell.product_gates
    reads_state = [program.reads("state", s) for s in cell.states]
    reads_next = [program.reads("new_state", s) for s in cell.states]
    forward_inputs = {("gate", g): f"gate[{k}]" for k, g in enumerate(cell.gates)}
    both = {("state", s): f"state[{k}]" for k, s in enumerate(cell.states)}
    both |= {w: f"weight[{k}]" for k, w in enumerate(program.weights)}
    backward_inputs = {("new_state", s): f"next[{k}]" for k, s in enumerate(cell.states)}
    backward_inputs |= {("saved", str(k)): f"save[{k}]" for k in range(len(program.saved))}
    backward_inputs |= {("cotangent", s): f"d_next[{k}]" for k, s in enumerate(cell.states)}
    again = recomputed(program.backward)
    forward = emit_assignments(
        [f"next[{k}]" for k in range(len(cell.states))]
        + [f"save[{k}]" for k in range(len(program.saved))],
        program.new_states + program.saved,
        forward_inputs | both,
        _saving(program),
        {},
    )
    backward = emit_assignments(
        [f"d_gate[{k}]" for k in range(len(cell.gates))]
        + [f"d_state[{k}]" for k in range(len(cell.states))]
        + [f"d_weight[{k}]" for k in range(len(program.weights))],
        program.backward,
        both | backward_inputs,
        {},
        again,
    )
    return f"""\
struct Cell {{
  // {_order(program)}
  static constexpr int gates = {len(cell.gates)}, states = {len(cell.states)};
  static constexpr int weights = {len(program.weights)}, saved = {len(program.saved)};
  static constexpr int recurrent = {len(recurrent)}, inputs = {len(cell.input)};
  // Where a gate stands in R and in Wx (-1: not there), and which gates stand there in turn.
  static constexpr int recurrent_slot[] = {_slots(cell.gates, recurrent)};
  static constexpr int input_slot[] = {_slots(cell.gates, cell.input)};
  static constexpr int recurrent_gate[] = {_slots(recurrent, cell.gates)};
  static constexpr int input_gate[] = {_slots(cell.input, cell.gates)};
  // What the derivative reads of the states before and after the step.
  static constexpr bool reads_state[] = {_booleans(reads_state)};
  static constexpr bool reads_next[] = {_booleans(reads_next)};
  // Whether anything is computed for nothing but to be saved.
  static constexpr bool only_saved = {"true" if program.only_saved else "false"};

  // What is saved for the backward pass: its price (written and read once), and that of doing
  // without, in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void forward(const Vec* gate, [[maybe_unused]] const Vec* state,
                                      [[maybe_unused]] const Vec* weight, Vec* next,
                                      [[maybe_unused]] Vec* save) {{
    namespace math = flashrnn::math;
{forward}
  }}

  // Forward values: {len(program.saved)} are read as saved, for \
{len(program.saved) * SAVE_COST:g}; others are recomputed where marked, for {sum(again.values()):g},
  // in multiplications of a vector.
  template <class S, class Vec = typename S::Vec>
  static FLASHRNN_INLINE void backward([[maybe_unused]] const Vec* state,
                                       [[maybe_unused]] const Vec* next,
                                       [[maybe_unused]] const Vec* weight,
                                       [[maybe_unused]] const Vec* save, const Vec* d_next,
                                       Vec* d_gate, Vec* d_state,
                                       [[maybe_unused]] Vec* d_weight) {{
    namespace math = flashrnn::math;
{backward}
  }}
}};
"""


def _saving(program: Program) -> dict[str, str]:
    """What each saved value is, costs, and would cost otherwise, as remarks of its target."""
    remarks = {}
    for k, (value, instead) in enumerate(zip(program.saved, program.instead, strict=True)):
        otherwise = "no other way" if math.isinf(instead) else f"otherwise {instead:g}"
        remarks[f"save[{k}]"] = f"{_short(value)}: {SAVE_COST:g}, {otherwise}"
    return remarks


def _short(value: Expression) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _order(program: Program) -> str:
    """What the indices of the arrays stand for."""
    cell = program.cell
    listed = [("gates", cell.gates), ("states", cell.states)]
    listed.append(("weights", tuple(repr(leaf(kind, name)) for kind, name in program.weights)))
    return "; ".join(f"{what}: {' '.join(names)}" for what, names in listed if names)


def _slots(items: Sequence[str], within: Sequence[str]) -> str:
    return (
        "{" + (", ".join(str(within.index(i) if i in within else -1) for i in items) or "-1") + "}"
    )


def _booleans(values: Sequence[bool]) -> str:
    return "{" + ", ".join("true" if v else "false" for v in values) + "}"
