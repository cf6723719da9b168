"""Triton for a cell's pointwise parts: expressions as lines, functions and their primitives.

The schedules (emit/triton_fused.py, emit/triton_alternating.py) compose these into a module that
is meant to be read: the tiling as constexpr lines, a few primitives, the cell, the kernels. It
uses nothing of triton.language.standard, whose functions are bound to the interpreter or to the
compiler when Triton is imported, so one process can do both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import indent

from flashrnn.dtypes import Dtype
from flashrnn.ir.expression import CONSTANT, INPUT, Expression, walk
from flashrnn.ir.ops import OPS
from flashrnn.passes.lower import Program

INFERENCE, TRAINING, BACKWARD = "inference", "training", "backward"
# How float32 operands of a product are taken: as they are, or rounded to tf32.
IEEE, TF32 = "ieee", "tf32"

_PRIMITIVES = {
    "sigmoid": """
@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
""",
    "tanh": '''
@triton.jit
def tanh(x):
    """A continued fraction near 0, where 1 - exp(-2x) would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = x * x
    near = tl.abs(x) < 0.6
    numerator = tl.where(near, x * (945.0 + y * (105.0 + y)), tl.where(x < 0.0, e - 1.0, 1.0 - e))
    return numerator / tl.where(near, 945.0 + y * (420.0 + 15.0 * y), 1.0 + e)
''',
    "log_sigmoid": """
@triton.jit
def log_sigmoid(x):
    return minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))
""",
    "maximum": """
@triton.jit
def maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
""",
    "minimum": """
@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
""",
}
_USES = {"log_sigmoid": ("minimum",)}

# Triton's interpreter (3.8, 3.9) multiplies bfloat16 operands wrongly and truncates to bfloat16.
STORED = '''
@triton.jit
def stored(x):
    """float32 in the storage type, to nearest even."""
    if interpreted and storage == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(storage)
'''
PRODUCT = '''
@triton.jit
def product(x, y):
    """x @ y, accumulated in float32."""
    if interpreted:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision="ieee")
    return tl.dot(x, y, input_precision=precision)
'''


def header(
    program: Program, what: str, dtype: Dtype, precision: str, interpreted: bool,
    constants: Mapping[str, int],
) -> str:  # fmt: skip
    """The top of a cell's module: where it comes from, and its constexpr lines."""
    title = f"{program.cell.name}, {what}, {dtype.name}: generated from the cell's equations."
    return module_header(title, dtype, precision, interpreted, constants)


def module_header(
    title: str, dtype: Dtype, precision: str, interpreted: bool, constants: Mapping[str, int]
) -> str:
    """The top of any module: what it is, and its constexpr lines."""
    tiling = "\n".join(f"{name} = tl.constexpr({value})" for name, value in constants.items())
    return f'''\
"""{title}"""

import triton
import triton.language as tl

{tiling}
storage = tl.constexpr({dtype.triton})
precision = tl.constexpr("{precision}")  # of products of float32
interpreted = tl.constexpr({interpreted})
'''


def primitives(program: Program, direction: str, *, products: bool) -> str:
    """What the cell's functions and a schedule of that direction call, and no more."""
    roots = program.backward if direction == BACKWARD else program.new_states + program.saved
    wanted = {node.op for node in walk(roots)}
    if direction == BACKWARD:
        wanted |= {"minimum", "maximum"}  # gradient_clip
    wanted |= {u for op in wanted for u in _USES.get(op, ())}
    text = [source for name, source in _PRIMITIVES.items() if name in wanted]
    return "\n".join([*text, STORED, *([PRODUCT] if products else [])])


def input_name(node: Expression) -> str:
    """The name of an input in emitted code."""
    prefix = {"state": "", "new_state": "new_", "cotangent": "d_new_"}.get(node.kind)
    return f"{node.kind}_{node.name}" if prefix is None else f"{prefix}state_{node.name}"


def inputs_of(roots: Sequence[Expression]) -> list[Expression]:
    """The inputs that the roots depend on."""
    return [node for node in walk(roots) if node.op == INPUT]


def results_of(program: Program, direction: str) -> tuple[list[str], tuple[Expression, ...]]:
    """Names and expressions of what the cell's function gives in that direction."""
    cell = program.cell
    states = [f"new_state_{s}" for s in cell.states]
    if direction == INFERENCE:
        return states, program.new_states
    if direction == TRAINING:
        saved = [f"saved_{k}" for k in range(len(program.saved))]
        return states + saved, program.new_states + program.saved
    return (
        [f"d_gate_{g}" for g in cell.gates]
        + [f"d_state_{s}" for s in cell.states]
        + [f"d_{kind}_{name}" for kind, name in program.weights],
        program.backward,
    )


def cell_function(program: Program, direction: str) -> str:
    """The cell as a function of tiles: its step, or its derivative."""
    names, roots = results_of(program, direction)
    arguments = [input_name(node) for node in inputs_of(roots)]
    lines = assignments(names, roots)
    title = {INFERENCE: "One step", TRAINING: "One step", BACKWARD: "One step's derivative"}
    return f'''
@triton.jit
def cell({", ".join(arguments)}):
    """{title[direction]} of {program.cell.name}, in float32."""
{lines}
    return {", ".join(names)}
'''


def call_of_cell(program: Program, direction: str) -> list[str]:
    """The statements that call it on variables of the same names; `nothing` is a tile of zeros."""
    names, roots = results_of(program, direction)
    arguments = [input_name(node) for node in inputs_of(roots)]
    lines = [f"{', '.join(names)} = cell({', '.join(arguments)})"]
    for name, root in zip(names, roots, strict=True):
        if all(node.kind in ("parameter", "recurrent") for node in inputs_of([root])):
            lines.append(f"{name} = nothing + {name}")  # the same for every row
    return lines


def assignments(targets: Sequence[str], roots: Sequence[Expression]) -> str:
    """Statements that assign each root to its target."""
    names: dict[Expression, str] = {}
    lines: list[str] = []
    for node in walk(roots):
        if node.op == CONSTANT:
            names[node] = _number(node.value)
        elif node.op == INPUT:
            names[node] = input_name(node)
        else:
            names[node] = f"x{len(lines)}"
            operands = (names[a] for a in node.arguments)
            lines.append(f"    {names[node]} = {OPS[node.op].spelling['triton'].format(*operands)}")
    lines += [f"    {target} = {names[root]}" for target, root in zip(targets, roots, strict=True)]
    return "\n".join(lines)


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def kernel(arguments: list[str], numbers: list[str], body: list[str], name: str = "run") -> str:
    """The function of that name."""
    listed = ", ".join(f'"{n}"' for n in numbers)
    return (
        f"\n@triton.jit(do_not_specialize=[{listed}])\n"
        f"def {name}({', '.join(arguments)}):\n" + indent("\n".join(body), "    ") + "\n"
    )
