"""One step of a cell in Triton, its memory traffic included: what the two schedules share.

A tile is b_per_program rows times d_per_program units of a head, in float32. Memory is addressed
in rows of D numbers, and D is a constant, so the compiler knows how far every address is aligned
without a kernel of its own per stride. `full` says that the units are exactly the head's.
"""

from __future__ import annotations

from collections.abc import Callable

from flashrnn.emit.triton import TRAINING, call_of_cell
from flashrnn.passes.lower import Program

# Arguments that are numbers: the compiler must not look at their values.
SIZES = ["B", "T", "N", "reverse"]
WX = ["wx_b", "wx_t", "wx_g", "wx_n"]
STATES = ["states_s", "states_b", "states_t", "states_n"]
D_STATES = ["d_states_s", "d_states_b", "d_states_t", "d_states_n"]
D_GATES = ["d_gates_b", "d_gates_t", "d_gates_g", "d_gates_n"]

FORWARD_NUMBERS = [*WX, *STATES, *SIZES]
BACKWARD_NUMBERS = [*STATES, *D_STATES, *D_GATES, *SIZES]


def tile(full: bool) -> list[str]:
    """Which rows and units this program has, and where each row ends."""
    return [
        "n = tl.program_id(1).to(tl.int64)",
        "rows = tl.program_id(0) * b_per_program + tl.arange(0, b_per_program)",
        "units = tl.program_id(2) * d_per_program + tl.arange(0, d_per_program)",
        "row, unit = rows.to(tl.int64)[:, None], units[None, :]",
        "in_head = unit >= 0" if full else "in_head = unit < D",
        "inside = (rows < B)[:, None]" if full else "inside = (rows < B)[:, None] & in_head",
        "nothing = tl.full([b_per_program, d_per_program], 0.0, tl.float32)",
        "if lengths is not None:",
        "    end = tl.load(lengths + rows, mask=rows < B, other=0).to(tl.int32)",
    ]


def time(full: bool) -> list[str]:
    """Which rows have step t, and where it stands in time."""
    return [
        "if lengths is not None:",
        "    active = (t < end)[:, None]" + ("" if full else " & in_head"),
        "    at = (t + reverse * (end - 1 - 2 * t)).to(tl.int64)[:, None]",
        "else:",
        "    active = inside",
        "    at = tl.cast(t + reverse * (T - 1 - 2 * t), tl.int64)",
    ]


def load(name: str, address: str, mask: str) -> str:
    """The statement that loads a tile, zero outside of the mask."""
    return f"{name} = tl.load({address}, mask={mask}, other=0.0).to(tl.float32)"


def of_state(tensor: str, s: int) -> str:
    """The address of a state's tile in a tensor [S, B, 1, N, D]."""
    return f"{tensor} + (({s} * B + row) * N + n) * D + unit"


def weights(program: Program) -> list[str]:
    """Loads of the per-unit weights."""
    return [
        load(f"{kind}_{name}", f"weights + ({k} * N + n) * D + unit", "in_head")
        for k, (kind, name) in enumerate(program.weights)
    ]


def biases(program: Program) -> list[str]:
    """Loads of the bias of each gate."""
    return [
        load(f"bias_{g}", f"bias + ({k} * N + n) * D + unit", "in_head")
        for k, g in enumerate(program.cell.gates)
    ]


def sequences(program: Program, direction: str) -> list[str]:
    """Where the tile stands in what has a time axis."""
    K = len(program.saved)
    states = "states_tile = states + (row * states_b + n * states_n) * D + unit"
    saved = f"saved_tile = saved + (row * N + n) * {K} * D + unit"
    if direction != "backward":
        wx = ["wx_tile = wx + (row * wx_b + n * wx_n) * D + unit"] if program.cell.input else []
        return [*wx, states, *([saved] if K and direction == TRAINING else [])]
    return [
        *([states] if _reads_states(program) else []),
        *([saved] if K else []),
        "d_gates_tile = d_gates + (row * d_gates_b + n * d_gates_n) * D + unit",
        "if d_states is not None:",
        "    d_states_tile = d_states + (row * d_states_b + n * d_states_n) * D + unit",
    ]


def forward(program: Program, direction: str, product_of: Callable[[str], str]) -> list[str]:
    """From the gates to the new states, which are stored; product_of(gate): the gate's R h."""
    cell, lines = program.cell, []
    for k, g in enumerate(cell.input):
        lines.append(load(f"wx_{g}", f"wx_tile + (at * wx_t + {k} * wx_g) * D", "active"))
    for g in cell.gates:
        terms = [product_of(g)] if g in cell.product_gates else []
        terms += [f"wx_{g}"] if g in cell.input else []
        lines.append(f"gate_{g} = {' + '.join(terms or ['nothing'])} + bias_{g}")
    lines += call_of_cell(program, direction)
    for s, name in enumerate(cell.states):
        address = f"states_tile + ({s} * states_s + at * states_t) * D"
        lines.append(f"tl.store({address}, stored(new_state_{name}), mask=active)")
    for k in range(len(program.saved) if direction == TRAINING else 0):
        lines.append(f"tl.store({_saved(program, k)}, stored(saved_{k}), mask=active)")
    return lines


def backward(program: Program) -> list[str]:
    """From the cotangents of the new states, d_state_<name>, to those of the gates and states.

    Those of the gates are stored, in d_<gate>; d_state_<name> now belongs to the state before the
    step, the product with R apart, and what it was is old_d_state_<name>.
    """
    cell, lines = program.cell, []
    if any(program.reads("state", s) for s in cell.states):
        lines += ["before = at - 1 + 2 * reverse", "starts = row * 0 + t == 0"]
    for s, name in enumerate(cell.states):
        at_state = "states_tile + ({} * states_s + {} * states_t) * D"
        if program.reads("new_state", name):
            lines.append(load(f"new_state_{name}", at_state.format(s, "at"), "active"))
        if program.reads("state", name):
            first = f"tl.load({of_state('initial', s)}, mask=active & starts, other=0.0)"
            lines += [
                f"first_{name} = {first}",
                f"state_{name} = tl.load({at_state.format(s, 'before')}, "
                f"mask=active & (starts == 0), other=first_{name}).to(tl.float32)",
            ]
    for k in range(len(program.saved)):
        if program.reads("saved", str(k)):
            lines.append(load(f"saved_{k}", _saved(program, k), "active"))
    for s, name in enumerate(cell.states):
        address = f"d_states_tile + ({s} * d_states_s + at * d_states_t) * D"
        lines += [
            f"old_d_state_{name} = d_state_{name}",
            f"d_new_state_{name} = d_state_{name}",
            "if d_states is not None:",
            f"    {load('d_output', address, 'active')}",
            f"    d_new_state_{name} += d_output",
        ]
    lines += call_of_cell(program, "backward")
    for k, g in enumerate(cell.gates):
        lines += [
            f"d_{g} = stored(tl.where(active, d_gate_{g}, 0.0))",
            f"tl.store(d_gates_tile + (at * d_gates_t + {k} * d_gates_g) * D, d_{g}, mask=active)",
        ]
    return lines


def _saved(program: Program, k: int) -> str:
    return f"saved_tile + (tl.cast(t, tl.int64) * B * N * {len(program.saved)} + {k}) * D"


def _reads_states(program: Program) -> bool:
    return program.states_read > 0


def unless_ended(names: list[str], new: str, old: str, *, otherwise: bool = False) -> list[str]:
    """Each name becomes `new`, where {} is the name; in rows that have ended, `old`.

    otherwise: `new` is another variable, so it is assigned where no row ends early, too.
    """
    lines = ["if lengths is not None:"]
    lines += [f"    {x} = tl.where(active, {new.format(x)}, {old.format(x)})" for x in names]
    if otherwise:
        lines += ["else:", *(f"    {x} = {new.format(x)}" for x in names)]
    return lines
