"""Attention over every prefix in Triton: three kernels per direction.

A program has one head of one sequence, d_per_program of its channels, and t_per_chunk steps. It
goes through them t_per_block at a time: a masked triangle of weights times the block's values, and
a carry of what came before (Feng et al., "Attention as an RNN", 2024, section 3.2). `finish` alone
is the sequential schedule. With several chunks, `totals` gives the carry of each chunk by itself,
`join` what each chunk begins with, and then all chunks `finish` at once.

Backward, with u_i, m_i as saved and delta_i = <dO_i, o_i>, from the last step to the first:
S_i = dO_i / u_i + e^(m_i - m_{i+1}) S_{i+1}, sigma_i likewise of delta; dv_i = e^(s_i - m_i) S_i,
ds_i = <v_i, dv_i> - e^(s_i - m_i) sigma_i. A carry S belongs to the maximum m of the step after.
What is summed over channels (sigma, ds) is partial where several programs share a head.
"""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD
from flashrnn.emit.triton_scan import finite, lines, plus, ratio, scan_header, scan_kernel

SIZES = ["T", "N", "chunks", "t_per_chunk", "reverse"]
S, V, O = ["s_b", "s_t", "s_n"], ["v_b", "v_t", "v_n"], ["o_b", "o_t", "o_n"]
D_O, D_S, D_V = ([f"d_{x}" for x in names] for names in (O, S, V))
FORWARD_NUMBERS = [*S, *V, *O, *SIZES]
BACKWARD_NUMBERS = [*S, *V, *O, *D_O, *D_S, *D_V, "d_s_k", *SIZES]

# Where a program's sequence lies, and its chunk of it; steps count in the order of the scan.
_PLACE = """
row = tl.program_id(0).to(tl.int64)
n = row % N
b = row // N
chunk = tl.program_id(1)
units = tl.program_id(2) * d_per_program + tl.arange(0, d_per_program)
steps = tl.arange(0, t_per_block)
stores = (steps * 0 + tl.program_id(2)) == 0  # what programs of a head share is stored by one
if offsets is not None:
    start = tl.load(offsets + b)
    length = (tl.load(offsets + b + 1) - start).to(tl.int32)
    base = start
    b = b * 0
else:
    length = T
    base = b * 0
begin = chunk * t_per_chunk
end = tl.minimum(begin + t_per_chunk, length)
slot = row * chunks + chunk
"""
# The steps of one block: t in the order of the scan, `at` in memory.
_STEPS = """
    t = {first} + steps
    inside = t < end
    at = base + t + reverse * (length - 1 - 2 * t)
    tile = inside[:, None] & (units < D)[None, :]
"""
_SCORES = """
    s = tl.load(
        scores + b * s_b + at * s_t + n * s_n, mask=inside, other=float("-inf")
    ).to(tl.float32)
"""


def _tile(name: str, tensor: str, letter: str, indentation: str = "    ") -> str:
    """The load of a block's rows of a tensor [B, T, N, D] in float32."""
    load = f"{name} = tl.load({tensor} + place, mask=tile, other=0.0).to(tl.float32)"
    return f"{_place(letter, indentation)}{indentation}{load}\n"


def _store_tile(value: str, tensor: str, indentation: str = "    ") -> str:
    store = f"tl.store({tensor} + place, stored({value}), mask=tile)"
    return f"{_place(tensor, indentation)}{indentation}{store}\n"


def _place(letter: str, indentation: str) -> str:
    rows = f"(b * {letter}_b + at * {letter}_t + n * {letter}_n)[:, None]"
    return f"{indentation}place = {rows} * D + units[None, :]\n"


_VALUES = _tile("x", "v", "v")

# The state after a block.
_ADVANCE = lines(
    "new = tl.maximum(m, tl.reduce(s, 0, larger))",
    f"kept = {ratio('m', 'new')}",
    f"p = tl.exp(s - {finite('new')})",
    *plus("u", "kept", "tl.reduce(p, 0, added)"),
    *plus("w", "kept", "tl.reduce(p[:, None] * x, 0, added)"),
    "m = new",
    depth=1,
)
_NOTHING = """
m = tl.full((), float("-inf"), tl.float32)
u = tl.full((), 0.0, tl.float32)
w = tl.full((d_per_program,), 0.0, tl.float32)
"""
_NONE_LOST = """
u_lost = u * 0.0
w_lost = w * 0.0
"""


def _load_state(names: str, place: str, indentation: str = "    ") -> str:
    m, u, w = names.split()
    lines = (
        f"m = tl.load({m} + {place})",
        f"u = tl.load({u} + {place})",
        f"w = tl.load({w} + {place} * D + units, mask=units < D, other=0.0)",
    )
    return "\n".join(indentation + line for line in lines) + "\n"


def _store_state(names: str, place: str, indentation: str = "    ") -> str:
    m, u, w = names.split()
    lines = (
        f"tl.store({w} + {place} * D + units, w, mask=units < D)",
        "if tl.program_id(2) == 0:",
        f"    tl.store({m} + {place}, m)",
        f"    tl.store({u} + {place}, u)",
    )
    return "\n".join(indentation + line for line in lines) + "\n"


_TOTALS = (
    _PLACE + _NOTHING + _NONE_LOST
    + "for i in range(begin, end, t_per_block):" + _STEPS.format(first="i") + _SCORES + _VALUES
    + _ADVANCE
    + _store_state("part_m part_u part_w", "slot", "")
)  # fmt: skip
_JOIN = (
    _PLACE + _NOTHING + "if m0 is not None:\n" + _load_state("m0 u0 w0", "row") + _NONE_LOST
    + """
for c in range((length + t_per_chunk - 1) // t_per_chunk):
    place = row * chunks + c
"""
    + _store_state("at_m at_u at_w", "place")
    + """
    other = tl.load(part_m + place)
    new = tl.maximum(m, other)
    part = tl.load(part_w + place * D + units, mask=units < D, other=0.0)
"""
    + lines(
        f"kept = {ratio('m', 'new')}",
        f"taken = {ratio('other', 'new')}",
        *plus("u", "kept", "tl.load(part_u + place) * taken"),
        *plus("w", "kept", "part * taken"),
        "m = new",
        depth=1,
    )
    + _store_state("last_m last_u last_w", "row", "")
)  # fmt: skip
_FINISH = (
    _PLACE + _NOTHING + "if m0 is not None:\n" + _load_state("m0 u0 w0", "slot") + _NONE_LOST
    + "for i in range(begin, end, t_per_block):" + _STEPS.format(first="i") + _SCORES + _VALUES
    + """
    before = steps[None, :] <= steps[:, None]
    masked = tl.where(before, s[None, :], float("-inf"))
    row_m = tl.maximum(m, tl.reduce(masked, 1, larger))
"""
    + lines(
        f"p = tl.exp(masked - ({finite('row_m')})[:, None])",
        f"kept = {ratio('m', 'row_m')}",
        depth=1,
    )
    + """
    row_u = u * kept + tl.reduce(p, 1, added)
    if saved is not None:
        entry = (b * N + n) * T + base + t
        tl.store(saved + entry, row_m, mask=inside & stores)
        tl.store(saved + saved_u + entry, row_u, mask=inside & stores)
    if o is not None:
        row_w = w[None, :] * kept[:, None] + tl.dot(p, x, input_precision=precision)
        some = (row_u != 0.0)[:, None]
        y = tl.where(some, row_w / tl.where(some, row_u[:, None], 1.0), 0.0)
"""
    + _store_tile("y", "o", "        ")
    + """
"""
    + _ADVANCE
    + "if last_m is not None:\n"
    + _store_state("last_m last_u last_w", "row")
)  # fmt: skip

# The carry before a block: d is dO / u, delta <dO, o> / u.
_ADVANCE_BACK = lines(
    f"kept = {ratio('first', 'm')}",
    f"p = tl.exp(first - {finite('row_m')})",
    *plus("sigma", "kept", "tl.reduce(p * delta, 0, added)"),
    *plus("g", "kept", "tl.reduce(p[:, None] * d, 0, added)"),
    "m = first",
    depth=1,
)
# Nothing comes from behind: all weights relative to this maximum are 0.
_NOTHING_BEHIND = """
parts = tl.num_programs(2)
k = tl.program_id(2)
m = tl.full((), float("inf"), tl.float32)
sigma = tl.full((), 0.0, tl.float32)
g = tl.full((d_per_program,), 0.0, tl.float32)
"""
_NONE_LOST_BEHIND = """
sigma_lost = sigma * 0.0
g_lost = g * 0.0
"""


def _load_carry(names: str, place: str, indentation: str = "    ") -> str:
    m, sigma, g = names.split()
    lines = (
        f"m = tl.load({m} + {place})",
        f"sigma = tl.load({sigma} + {place} * parts + k)",
        f"g = tl.load({g} + {place} * D + units, mask=units < D, other=0.0)",
    )
    return "\n".join(indentation + line for line in lines) + "\n"


def _store_carry(names: str, place: str, indentation: str = "    ") -> str:
    m, sigma, g = names.split()
    lines = (
        "if tl.program_id(2) == 0:",
        f"    tl.store({m} + {place}, m)",
        f"tl.store({sigma} + {place} * parts + k, sigma)",
        f"tl.store({g} + {place} * D + units, g, mask=units < D)",
    )
    return "\n".join(indentation + line for line in lines) + "\n"


_BACKWARDS = """
saved_m = saved + (b * N + n) * T + base
blocks = (end - begin + t_per_block - 1) // t_per_block
for back in range(blocks):
    i = begin + (blocks - 1 - back) * t_per_block
"""
_COTANGENTS = (
    """
    first = tl.load(saved_m + i)
    row_m = tl.load(saved_m + t, mask=inside, other=float("inf"))
    row_u = tl.load(saved_m + saved_u + t, mask=inside, other=0.0)
    over = tl.where(row_u != 0.0, 1.0 / tl.where(row_u != 0.0, row_u, 1.0), 0.0)
    d = tl.full((t_per_block, d_per_program), 0.0, tl.float32)
    delta = tl.full((t_per_block,), 0.0, tl.float32)
    if d_o is not None:
"""
    + _tile("y", "o", "o", "        ")
    + _tile("d", "d_o", "d_o", "        ")
    + """
        delta = tl.reduce(d * y, 1, added) * over
        d = d * over[:, None]
"""
)
_TOTALS_BACK = (
    _PLACE + _NOTHING_BEHIND + _NONE_LOST_BEHIND + _BACKWARDS + _STEPS.format(first="i")
    + _COTANGENTS
    + _ADVANCE_BACK
    + _store_carry("part_m part_sigma part_g", "slot", "")
)  # fmt: skip
_JOIN_BACK = (
    _PLACE + _NOTHING_BEHIND + "if behind_m is not None:\n"
    + _load_carry("behind_m behind_sigma behind_g", "row") + _NONE_LOST_BEHIND
    + """
count = (length + t_per_chunk - 1) // t_per_chunk
for back in range(count):
    place = row * chunks + count - 1 - back
"""
    + _store_carry("at_m at_sigma at_g", "place")
    + """
    first = tl.load(part_m + place)
    part = tl.load(part_g + place * D + units, mask=units < D, other=0.0)
"""
    + lines(
        f"kept = {ratio('first', 'm')}",
        *plus("sigma", "kept", "tl.load(part_sigma + place * parts + k)"),
        *plus("g", "kept", "part"),
        "m = first",
        depth=1,
    )
    + _store_carry("out_m out_sigma out_g", "row", "")
)  # fmt: skip
_FINISH_BACK = (
    _PLACE + _NOTHING_BEHIND + "if behind_m is not None:\n"
    + _load_carry("behind_m behind_sigma behind_g", "slot") + _NONE_LOST_BEHIND
    + """
before_m = tl.full((), float("-inf"), tl.float32)
if m0 is not None:
    before_m = tl.load(m0 + row)
"""
    + _BACKWARDS + _STEPS.format(first="i") + _COTANGENTS + _SCORES + _VALUES
    + """
    later = steps[None, :] >= steps[:, None]
"""
    + lines(
        f"exponents = s[:, None] - ({finite('row_m')})[None, :]",
        'p = tl.exp(tl.where(later, exponents, float("-inf")))',
        f"carried = tl.exp(s - {finite('m')})",
        depth=1,
    )
    + """
    d_x = tl.dot(p, d, input_precision=precision) + carried[:, None] * g[None, :]
    d_s = tl.reduce(d_x * x, 1, added) - tl.reduce(p * delta[None, :], 1, added) - carried * sigma
    if d_last_m is not None:  # the score that attained the last maximum first
        top = tl.load(last_m + row)
        older = tl.load(saved_m + t - 1, mask=inside & (t > 0), other=float("-inf"))
        older = tl.where(t > 0, older, before_m)
        attained = inside & (row_m == top) & (older < top) & stores
        d_s += tl.where(attained, tl.load(d_last_m + row), 0.0)
"""
    + _store_tile("d_x", "d_v")
    + """
    place = k * d_s_k + b * d_s_b + at * d_s_t + n * d_s_n
    if parts == 1:
        tl.store(d_scores + place, stored(d_s), mask=inside)
    else:
        tl.store(d_scores + place, d_s, mask=inside)
"""
    + _ADVANCE_BACK
    + "if out_m is not None:\n"
    + _store_carry("out_m out_sigma out_g", "row")
)  # fmt: skip


def emit_scan_attention(
    direction: str,
    dtype: Dtype,
    *,
    D: int,
    t_per_block: int,
    d_per_program: int,
    interpreted: bool = False,
) -> str:
    """The source of a direction's kernels: `totals`, `join` and `finish`."""
    constants = {"D": D, "t_per_block": t_per_block, "d_per_program": d_per_program}
    title = f"Attention over every prefix, {direction}"
    parts = [scan_header(title, dtype, interpreted, constants, reduces=True)]
    parts += _backward() if direction == BACKWARD else _forward()
    return "\n".join(parts)


def _forward() -> list[str]:
    inputs = ["scores", *S, "v", *V]
    initial, last = ["m0", "u0", "w0"], ["last_m", "last_u", "last_w"]
    part, at = (["_".join((x, y)) for y in "muw"] for x in ("part", "at"))
    rest = ["offsets", *SIZES]
    return [
        scan_kernel("totals", [*inputs, *part, *rest], [*S, *V, *SIZES], _TOTALS),
        scan_kernel("join", [*initial, *part, *at, *last, *rest], SIZES, _JOIN),
        scan_kernel(
            "finish",
            [*inputs, *initial, "o", *O, *last, "saved", "saved_u", *rest],
            [*FORWARD_NUMBERS, "saved_u"],
            _FINISH,
        ),
    ]


def _backward() -> list[str]:
    y = ["o", *O, "d_o", *D_O, "saved", "saved_u"]
    part, at, behind, out = (
        [f"{x}_{y}" for y in ("m", "sigma", "g")] for x in ("part", "at", "behind", "out")
    )
    numbers, rest = [*O, *D_O, "saved_u"], ["offsets", *SIZES]
    return [
        scan_kernel("totals", [*y, *part, *rest], [*numbers, *SIZES], _TOTALS_BACK),
        scan_kernel("join", [*behind, *part, *at, *out, *rest], SIZES, _JOIN_BACK),
        scan_kernel(
            "finish",
            ["scores", *S, "v", *V, *y, *behind, "m0", "last_m", "d_last_m", "d_scores", "d_s_k",
             *D_S, "d_v", *D_V, *out, *rest],
            [*BACKWARD_NUMBERS, "saved_u"],
            _FINISH_BACK,
        ),
    ]  # fmt: skip
