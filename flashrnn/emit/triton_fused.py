"""The fused schedule in Triton: one program runs all T steps of one head and a tile of rows.

R stays on the chip over all steps: in registers, or in shared memory. Memory is addressed in
rows of D numbers, and D is a constant, so the compiler knows how far every address is aligned
without a kernel of its own per stride.
"""

from __future__ import annotations

from textwrap import indent

from flashrnn.dtypes import Dtype
from flashrnn.emit.triton import (
    BACKWARD,
    IEEE,
    TRAINING,
    call_of_cell,
    cell_function,
    header,
    primitives,
)
from flashrnn.passes.lower import Program

# Arguments that are numbers: the compiler must not look at their values.
FORWARD_NUMBERS = (
    "wx_b wx_t wx_g wx_n states_s states_b states_t states_n B T N reverse".split()
)  # fmt: skip
BACKWARD_NUMBERS = (
    "states_s states_b states_t states_n d_states_s d_states_b d_states_t d_states_n "
    "d_gates_b d_gates_t d_gates_g d_gates_n B T N reverse".split()
)  # fmt: skip


def emit_fused(
    program: Program,
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    b_per_program: int,
    d_per_program: int,
    r_in_registers: bool,
    precision: str = IEEE,
    interpreted: bool = False,
) -> str:
    """The source of one kernel, `run`. direction: INFERENCE, TRAINING or BACKWARD.

    Where the recurrence is dense, d_per_program is D padded to a power of two.
    """
    constants = {"D": D, "b_per_program": b_per_program, "d_per_program": d_per_program}
    where = "registers" if r_in_registers else "shared memory"
    what = f"{direction}, fused" + (f", R in {where}" if program.cell.product_gates else "")
    schedule = _backward if direction == BACKWARD else _forward
    return "\n".join(
        (
            header(program, what, dtype, precision, interpreted, constants),
            primitives(program, direction, products=bool(program.cell.product_gates)),
            cell_function(program, direction),
            _LARGER,
            schedule(program, direction, D == d_per_program, r_in_registers),
        )
    )


_LARGER = """
@triton.jit
def larger(x, y):
    return tl.maximum(x, y)
"""


def _tile(full: bool) -> str:
    """Which rows and units this program has, and how many steps."""
    in_head = "" if full else "\nin_head = (units < D)[None, :]"
    inside = "(rows < B)[:, None]" if full else "(rows < B)[:, None] & in_head"
    return f"""\
n = tl.program_id(1).to(tl.int64)
rows = tl.program_id(0) * b_per_program + tl.arange(0, b_per_program)
units = tl.program_id(2) * d_per_program + tl.arange(0, d_per_program)
row, unit = rows.to(tl.int64)[:, None], units[None, :]{in_head}
inside = {inside}
nothing = tl.full([b_per_program, d_per_program], 0.0, tl.float32)
if lengths is not None:
    end = tl.load(lengths + rows, mask=rows < B, other=0).to(tl.int32)
    steps = tl.reduce(end, 0, larger)
else:
    steps = T"""


def _step(full: bool, next_to: str) -> str:
    """Which rows have step t, and where it stands in time."""
    return f"""\
if lengths is not None:
    active = {"(t < end)[:, None]" if full else "(t < end)[:, None] & in_head"}
    at = (t + reverse * (end - 1 - 2 * t)).to(tl.int64)[:, None]
else:
    active = inside
    at = tl.cast(t + reverse * (T - 1 - 2 * t), tl.int64){next_to}"""


def _load(name: str, address: str, mask: str) -> str:
    return f"{name} = tl.load({address}, mask={mask}, other=0.0).to(tl.float32)"


def _weights(program: Program, full: bool) -> list[str]:
    mask = "unit == unit" if full else "in_head"
    return [
        _load(f"{kind}_{name}", f"weights + ({k} * N + n) * D + unit", mask)
        for k, (kind, name) in enumerate(program.weights)
    ]


def _recurrent_weights(
    program: Program, full: bool, *, transposed: bool, keep: str | None
) -> list[str]:
    """R of each gate: [P, D] where transposed, as h R needs it, or [D, P].

    keep: the tile of float32 to which a use of R before the loop is added, of no effect, so that
    R stays in registers. Without it the compiler moves the load of R from shared memory to its
    only use, in the loop; and with all of R loaded before the first use, all of it takes shared
    memory at once.
    """
    cell = program.cell
    first = "units[None, :] * D + units[:, None]" if transposed else "units[:, None] * D + unit"
    mask = "unit == unit" if full else "in_head & (units < D)[:, None]"
    lines = []
    if keep is not None and cell.product_gates:
        lines = [
            "# a second use of R, of no effect, keeps it in registers over the loop",
            "never = (rows * 0 + T < 0)[:, None]",
            f"unused = stored(tl.where(never, {keep}, 0.0))",
        ]
    for k, g in enumerate(cell.product_gates):
        address = f"r + ({k} * N + n) * D * D + ({first})"
        lines.append(f"r_{g} = tl.load({address}, mask={mask}, other=0.0)")
        if keep is not None:
            lines.append(f"{keep} = tl.where(never, {keep} + product(unused, r_{g}), {keep})")
    return lines


def _forward(program: Program, direction: str, full: bool, r_in_registers: bool) -> str:
    cell, saving = program.cell, direction == TRAINING
    h = f"state_{cell.states[0]}"
    before = _weights(program, full)
    for k, g in enumerate(cell.gates):
        mask = "unit == unit" if full else "in_head"
        before.append(_load(f"bias_{g}", f"bias + ({k} * N + n) * D + unit", mask))
    for s, name in enumerate(cell.states):
        at = f"initial + (({s} * B + row) * N + n) * D + unit"
        before.append(_load(f"state_{name}", at, "inside"))
    before += _recurrent_weights(program, full, transposed=True, keep=h if r_in_registers else None)
    step = []
    for g in cell.gates:
        if g in cell.input:
            k = cell.input.index(g)
            step.append(_load(f"wx_{g}", f"wx_tile + (at * wx_t + {k} * wx_g) * D", "active"))
    if cell.product_gates:
        step.append(f"h = stored({h if full else f'tl.where(in_head, {h}, 0.0)'})")
    for g in cell.gates:
        terms = [f"product(h, r_{g})"] if g in cell.product_gates else []
        terms += [f"wx_{g}"] if g in cell.input else []
        step.append(f"gate_{g} = {' + '.join(terms or ['nothing'])} + bias_{g}")
    step += call_of_cell(program, direction)
    for s, name in enumerate(cell.states):
        at = f"states_tile + ({s} * states_s + at * states_t) * D"
        step.append(f"tl.store({at}, stored(new_state_{name}), mask=active)")
    if saving:
        K = len(program.saved)
        for k in range(K):
            at = f"saved_tile + (tl.cast(t, tl.int64) * B * N * {K} + {k}) * D"
            step.append(f"tl.store({at}, stored(saved_{k}), mask=active)")
    kept = [f"state_{s} = tl.where(active, new_state_{s}, state_{s})" for s in cell.states]
    moved = [f"state_{s} = new_state_{s}" for s in cell.states]
    last = [
        f"tl.store(last + (({s} * B + row) * N + n) * D + unit, stored(state_{name}), mask=inside)"
        for s, name in enumerate(cell.states)
    ]
    saved_tile = (
        f"\nsaved_tile = saved + (row * N + n) * {len(program.saved)} * D + unit" if saving else ""
    )
    return _kernel(
        "wx, wx_b, wx_t, wx_g, wx_n, r, bias, weights, initial, "
        "states, states_s, states_b, states_t, states_n, last, saved, lengths, B, T, N, reverse",
        FORWARD_NUMBERS,
        f"""\
{_tile(full)}
wx_tile = wx + (row * wx_b + n * wx_n) * D + unit
states_tile = states + (row * states_b + n * states_n) * D + unit{saved_tile}
{_lines(before)}
for t in range(steps):
{indent(_step(full, ""), "    ")}
{indent(_lines(step), "    ")}
    if lengths is not None:
{indent(_lines(kept), "        ")}
    else:
{indent(_lines(moved), "        ")}
{_lines(last)}""",
    )


def _backward(program: Program, direction: str, full: bool, r_in_registers: bool) -> str:
    cell, K = program.cell, len(program.saved)
    h = f"d_state_{cell.states[0]}"
    before = _weights(program, full)
    for s, name in enumerate(cell.states):
        before.append(f"d_state_{name} = nothing")
        at = f"d_last + (({s} * B + row) * N + n) * D + unit"
        before.append("if d_last is not None:")
        before.append(f"    {_load(f'd_state_{name}', at, 'inside')}")
    before += [f"sum_{kind}_{name} = nothing" for kind, name in program.weights]
    before += _recurrent_weights(
        program, full, transposed=False, keep=h if r_in_registers else None
    )
    step = []
    for s, name in enumerate(cell.states):
        if program.reads("new_state", name):
            at = f"states_tile + ({s} * states_s + at * states_t) * D"
            step.append(_load(f"new_state_{name}", at, "active"))
        if program.reads("state", name):
            first = f"initial + (({s} * B + row) * N + n) * D + unit"
            at = f"states_tile + ({s} * states_s + before * states_t) * D"
            step.append(f"first = tl.load({first}, mask=active & starts, other=0.0)")
            step.append(
                f"state_{name} = tl.load({at}, mask=active & (starts == 0), other=first)"
                ".to(tl.float32)"
            )
    for k in range(K):
        if program.reads("saved", str(k)):
            at = f"saved_tile + (tl.cast(t, tl.int64) * B * N * {K} + {k}) * D"
            step.append(_load(f"saved_{k}", at, "active"))
    for s, name in enumerate(cell.states):
        at = f"d_states_tile + ({s} * d_states_s + at * d_states_t) * D"
        step.append(f"d_new_state_{name} = d_state_{name}")
        step.append("if d_states is not None:")
        step.append(
            f"    d_new_state_{name} += tl.load({at}, mask=active, other=0.0).to(tl.float32)"
        )
    before_states = [f"old_{name} = d_state_{name}" for name in cell.states]
    step += before_states
    step += call_of_cell(program, direction)
    for k, g in enumerate(cell.gates):
        at = f"d_gates_tile + (at * d_gates_t + {k} * d_gates_g) * D"
        step.append(f"d_{g} = stored(tl.where(active, d_gate_{g}, 0.0))")
        step.append(f"tl.store({at}, d_{g}, mask=active)")
    step += [
        f"sum_{kind}_{name} += tl.where(active, d_{kind}_{name}, 0.0)"
        for kind, name in program.weights
    ]
    if cell.product_gates:
        step.append("if not cut:")
        step += [f"    {h} += product(d_{g}, r_{g})" for g in cell.product_gates]
    step.append(f"{h} = minimum(maximum({h}, -clip), clip)")
    kept = [
        f"d_state_{name} = tl.where(active, d_state_{name}, old_{name})" for name in cell.states
    ]
    after = [
        f"tl.store(d_initial + (({s} * B + row) * N + n) * D + unit, stored(d_state_{name}), "
        "mask=inside)"
        for s, name in enumerate(cell.states)
    ]
    for k, (kind, name) in enumerate(program.weights):
        mask = "units >= 0" if full else "units < D"
        at = f"d_weights + ((tl.program_id(0) * {len(program.weights)} + {k}) * N + n) * D + units"
        after.append(f"tl.store({at}, tl.reduce(sum_{kind}_{name}, 0, added), mask={mask})")
    next_to = ""
    if any(program.reads("state", s) for s in cell.states):
        next_to = "\nbefore = at - 1 + 2 * reverse\nstarts = row * 0 + t == 0"
    saved_tile = f"\nsaved_tile = saved + (row * N + n) * {K} * D + unit" if K else ""
    added = _ADDED if program.weights else ""
    return added + _kernel(
        "r, weights, initial, states, states_s, states_b, states_t, states_n, saved, "
        "d_states, d_states_s, d_states_b, d_states_t, d_states_n, d_last, "
        "d_gates, d_gates_b, d_gates_t, d_gates_g, d_gates_n, d_initial, d_weights, lengths, "
        "B, T, N, reverse, clip, cut: tl.constexpr",
        BACKWARD_NUMBERS,
        f"""\
{_tile(full)}
states_tile = states + (row * states_b + n * states_n) * D + unit
d_gates_tile = d_gates + (row * d_gates_b + n * d_gates_n) * D + unit{saved_tile}
if d_states is not None:
    d_states_tile = d_states + (row * d_states_b + n * d_states_n) * D + unit
{_lines(before)}
for back in range(steps):
    t = steps - 1 - back
{indent(_step(full, next_to), "    ")}
{indent(_lines(step), "    ")}
    if lengths is not None:
{indent(_lines(kept), "        ")}
{_lines(after)}""",
    )


_ADDED = """
@triton.jit
def added(x, y):
    return x + y

"""


def _kernel(arguments: str, numbers: list[str], body: str) -> str:
    listed = ", ".join(f'"{n}"' for n in numbers)
    return f"""
@triton.jit(do_not_specialize=[{listed}])
def run({arguments}):
{indent(body, "    ")}
"""


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)
