"""The alternating schedule in Triton: for each step a product by the library, then one of these.

For heads whose R no program can hold. What is carried from step to step is in memory, in float32;
products have the storage type.
"""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit import triton_step as one_step
from flashrnn.emit.triton import BACKWARD, IEEE, cell_function, header, kernel, primitives
from flashrnn.emit.triton_step import BACKWARD_NUMBERS, FORWARD_NUMBERS
from flashrnn.passes.lower import Program


def emit_alternating(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    b_per_program: int,
    d_per_program: int,
    interpreted: bool = False,
) -> str:
    """The source of the pointwise kernel, `run`, of one step t.

    direction: INFERENCE, TRAINING or BACKWARD. products: h R [N, B, G_r, D] of this step; going
    back, the product of the gates' gradients of the step behind with R, [N, B, D].
    """
    constants = {"D": D, "b_per_program": b_per_program, "d_per_program": d_per_program}
    full = D % d_per_program == 0
    schedule = _backward if direction == BACKWARD else _forward
    parts = (
        header(program, f"{direction}, one step", dtype, IEEE, interpreted, constants),
        primitives(program, direction, products=False),
        cell_function(program, direction),
        schedule(program, direction, full),
    )
    return "\n".join(parts)


def _forward(program: Program, direction: str, full: bool) -> str:
    cell, gates = program.cell, program.cell.product_gates
    lines = [
        *one_step.tile(full),
        *one_step.sequences(program, direction),
        *one_step.weights(program),
        *one_step.biases(program),
        *one_step.time(full),
    ]
    for s, name in enumerate(cell.states):
        lines.append(one_step.load(f"state_{name}", one_step.of_state("carried", s), "inside"))
    for k, g in enumerate(gates):
        address = f"products + ((n * B + row) * {len(gates)} + {k}) * D + unit"
        lines.append(one_step.load(f"product_{g}", address, "active"))
    lines += one_step.forward(program, direction, lambda g: f"product_{g}")
    lines += one_step.unless_ended(
        [f"state_{s}" for s in cell.states], "new_{}", "{}", otherwise=True
    )
    for s, name in enumerate(cell.states):
        address = one_step.of_state("carried", s)
        lines.append(f"tl.store({address}, state_{name}, mask=inside)")
    h = f"stored(state_{cell.states[0]})"
    lines.append(f"tl.store(h + (n * B + row) * D + unit, {h}, mask=inside)")
    arguments = ["products", "wx", *one_step.WX, "bias", "weights", "carried", "h"]
    arguments += ["states", *one_step.STATES, "saved", "lengths", *one_step.SIZES, "t"]
    return kernel(arguments, [*FORWARD_NUMBERS, "t"], lines)


def _backward(program: Program, _direction: str, full: bool) -> str:
    cell, gates = program.cell, program.cell.product_gates
    h = f"d_state_{cell.states[0]}"
    lines = [
        *one_step.tile(full),
        *one_step.sequences(program, BACKWARD),
        *one_step.weights(program),
        *one_step.time(full),
    ]
    for s, name in enumerate(cell.states):
        lines.append(one_step.load(f"d_state_{name}", one_step.of_state("carried", s), "inside"))
    # what flows back from the step behind, where there is one
    lines += [
        "if lengths is not None:",
        "    followed = active & (t + 1 < end)[:, None]",
        "else:",
        "    followed = active & (row * 0 + t + 1 < T)",
        "if not cut:",
        f"    {one_step.load('product', 'products + (n * B + row) * D + unit', 'followed')}",
        f"    {h} += product",
        f"{h} = tl.where(followed, minimum(maximum({h}, -clip), clip), {h})",
    ]
    lines += one_step.backward(program)
    for k, (kind, name) in enumerate(program.weights):
        address = f"d_weights + ((row * {len(program.weights)} + {k}) * N + n) * D + unit"
        lines += [
            one_step.load("total", address, "active"),
            f"tl.store({address}, total + d_{kind}_{name}, mask=active)",
        ]
    lines += one_step.unless_ended([f"d_state_{s}" for s in cell.states], "{}", "old_{}")
    for s, name in enumerate(cell.states):
        address = one_step.of_state("carried", s)
        lines.append(f"tl.store({address}, d_state_{name}, mask=inside)")
    for k, g in enumerate(gates):
        address = f"operand + ((n * B + row) * {len(gates)} + {k}) * D + unit"
        lines.append(f"tl.store({address}, d_{g}, mask=inside)")
    arguments = ["products", "operand", "weights", "initial", "carried"]
    arguments += ["states", *one_step.STATES, "saved", "d_states", *one_step.D_STATES]
    arguments += ["d_gates", *one_step.D_GATES, "d_weights", "lengths", *one_step.SIZES]
    arguments += ["clip", "t", "cut: tl.constexpr"]
    return kernel(arguments, [*BACKWARD_NUMBERS, "t"], lines)
