"""The fused schedule in Triton: one program runs all T steps of one head and a tile of rows.

R stays on the chip over all steps: in registers, or in shared memory. A cell without a dense
product has nothing to keep, and may divide its units among programs too.
"""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit import triton_step as one_step
from flashrnn.emit.triton import BACKWARD, IEEE, cell_function, header, kernel, primitives
from flashrnn.emit.triton_step import BACKWARD_NUMBERS, FORWARD_NUMBERS
from flashrnn.passes.lower import Program

_REDUCTIONS = """
@triton.jit
def larger(x, y):
    return tl.maximum(x, y)


@triton.jit
def added(x, y):
    return x + y
"""


def emit_fused(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    b_per_program: int,
    d_per_program: int,
    gates_in_registers: int,
    precision: str = IEEE,
    interpreted: bool = False,
) -> str:
    """The source of one kernel, `run`. direction: INFERENCE, TRAINING or BACKWARD.

    Where the recurrence is dense, d_per_program is D padded to a power of two; R of the first
    gates_in_registers gates is held in registers, that of the others in shared memory.
    """
    constants = {"D": D, "b_per_program": b_per_program, "d_per_program": d_per_program}
    what = f"{direction}, fused"
    if program.cell.product_gates:
        what += f", R of {gates_in_registers} gates in registers, the others in shared memory"
    full = D % d_per_program == 0
    schedule = _backward if direction == BACKWARD else _forward
    parts = (
        header(program, what, dtype, precision, interpreted, constants),
        primitives(program, direction, products=bool(program.cell.product_gates)),
        cell_function(program, direction),
        _REDUCTIONS,
        schedule(program, direction, full, gates_in_registers),
    )
    return "\n".join(parts)


def _recurrent_weights(
    program: Program, full: bool, in_registers: int, carried: str, *, transposed: bool
) -> list[str]:
    """R of each gate: [P, D] where transposed, as h R needs it, or [D, P].

    What is to stay in registers gets a second use before the loop, of no effect on `carried`, a
    tile of float32. Without it the compiler moves the load of R from shared memory to its only
    use, in the loop; and with all of R loaded before the first use, all of it takes shared memory
    at once.
    """
    column = "units[:, None]"
    first = f"unit * D + {column}" if transposed else f"{column} * D + unit"
    mask = "in_head" if full else f"in_head & ({column} < D)"
    lines = []
    for k, g in enumerate(program.cell.product_gates):
        if k == 0 < in_registers:
            lines += [
                "# a second use of R, of no effect, keeps it in registers over the loop",
                "never = (rows * 0 + T < 0)[:, None]",
                f"unused = stored(tl.where(never, {carried}, 0.0))",
            ]
        address = f"r + ({k} * N + n) * D * D + ({first})"
        lines.append(f"r_{g} = tl.load({address}, mask={mask}, other=0.0)")
        if k < in_registers:
            used = f"{carried} + product(unused, r_{g})"
            lines.append(f"{carried} = tl.where(never, {used}, {carried})")
    return lines


def _steps() -> list[str]:
    return [
        "if lengths is not None:",
        "    steps = tl.reduce(end, 0, larger)",
        "else:",
        "    steps = T",
    ]


def _forward(program: Program, direction: str, full: bool, in_registers: int) -> str:
    cell = program.cell
    h = f"state_{cell.states[0]}"
    setup = [
        *one_step.tile(full),
        *_steps(),
        *one_step.sequences(program, direction),
        *one_step.weights(program),
        *one_step.biases(program),
    ]
    for s, name in enumerate(cell.states):
        setup.append(one_step.load(f"state_{name}", one_step.of_state("initial", s), "inside"))
    setup += _recurrent_weights(program, full, in_registers, h, transposed=True)
    step = one_step.time(full)
    if cell.product_gates:  # padding may hold anything, and zeros of R do not clear infinity
        step.append(f"h = stored({h if full else f'tl.where(in_head, {h}, 0.0)'})")
    step += one_step.forward(program, direction, lambda g: f"product(h, r_{g})")
    step += one_step.unless_ended(
        [f"state_{s}" for s in cell.states], "new_{}", "{}", otherwise=True
    )
    after = [
        f"tl.store({one_step.of_state('last', s)}, stored(state_{name}), mask=inside)"
        for s, name in enumerate(cell.states)
    ]
    arguments = ["wx", *one_step.WX, "r", "bias", "weights", "initial", "states", *one_step.STATES]
    arguments += ["last", "saved", "lengths", *one_step.SIZES]
    body = [*setup, "for t in range(steps):", *_indented(step), *after]
    return kernel(arguments, FORWARD_NUMBERS, body)


def _backward(program: Program, _direction: str, full: bool, in_registers: int) -> str:
    cell = program.cell
    h = f"d_state_{cell.states[0]}"
    sums = [f"{kind}_{name}" for kind, name in program.weights]
    setup = [
        *one_step.tile(full),
        *_steps(),
        *one_step.sequences(program, BACKWARD),
        *one_step.weights(program),
        *(f"sum_{w} = nothing" for w in sums),
    ]
    for s, name in enumerate(cell.states):
        address = one_step.of_state("d_last", s)
        setup += [
            f"d_state_{name} = nothing",
            "if d_last is not None:",
            f"    {one_step.load(f'd_state_{name}', address, 'inside')}",
        ]
    setup += _recurrent_weights(program, full, in_registers, h, transposed=False)
    step = ["t = steps - 1 - back", *one_step.time(full), *one_step.backward(program)]
    step += [f"sum_{w} += tl.where(active, d_{w}, 0.0)" for w in sums]
    if cell.product_gates:
        step += ["if not cut:"]
        step += [f"    {h} += product(d_{g}, r_{g})" for g in cell.product_gates]
    step.append(f"{h} = minimum(maximum({h}, -clip), clip)")
    step += one_step.unless_ended([f"d_state_{s}" for s in cell.states], "{}", "old_{}")
    after = [
        f"tl.store({one_step.of_state('d_initial', s)}, stored(d_state_{name}), mask=inside)"
        for s, name in enumerate(cell.states)
    ]
    for k, w in enumerate(sums):
        address = f"d_weights + ((tl.program_id(0) * {len(sums)} + {k}) * N + n) * D + units"
        after.append(f"tl.store({address}, tl.reduce(sum_{w}, 0, added), mask=units < D)")
    arguments = ["r", "weights", "initial", "states", *one_step.STATES, "saved"]
    arguments += ["d_states", *one_step.D_STATES, "d_last", "d_gates", *one_step.D_GATES]
    arguments += ["d_initial", "d_weights", "lengths", *one_step.SIZES, "clip"]
    body = [*setup, "for back in range(steps):", *_indented(step), *after]
    return kernel([*arguments, "cut: tl.constexpr"], BACKWARD_NUMBERS, body)


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
