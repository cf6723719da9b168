"""Linear recurrences h_t = a_t h_{t-1} + b_t in Triton: `totals`, `join` and `finish`.

A program has d_per_program channels of one sequence and t_per_chunk steps. It loads t_per_block
steps at a time, so that their loads are under way together, and then goes through them one by one.
`finish` alone is the sequential schedule; with several chunks, `totals` gives each chunk's product
of factors and its h from zero, `join` the h that each chunk begins with.

Backward is the same recurrence of the gradients, from the last step to the first:
d_b_t = d_h_t + conj(a_{t+1}) d_b_{t+1}, and d_a_t = d_b_t conj(h_{t-1}); `reverse` is then 1 where
the recurrence itself runs forwards. A complex number is a pair.
"""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD
from flashrnn.emit.triton_scan import lines, scan_header, scan_kernel

SIZES = ["T", "chunks", "t_per_chunk", "reverse"]
_PLACE = lines(
    "row = tl.program_id(0).to(tl.int64)",
    "chunk = tl.program_id(1)",
    "units = tl.program_id(2) * d_per_program + tl.arange(0, d_per_program)",
    "in_row = units < D",
    "begin = chunk * t_per_chunk",
    "end = tl.minimum(begin + t_per_chunk, T)",
    "slot = row * chunks + chunk",
)


class _Numbers:
    """Real numbers, or complex ones as pairs of variables, as statements on them."""

    def __init__(self, is_complex: bool) -> None:
        self.parts = ("_re", "_im") if is_complex else ("",)

    def address(self, tensor: str, row: str, part: int) -> str:
        """Of a row [D] (or [D, 2]) of a tensor."""
        if len(self.parts) == 1:
            return f"{tensor} + ({row}) * D + units"
        return f"{tensor} + (({row}) * D + units) * 2" + (" + 1" if part else "")

    def load(self, name: str, tensor: str, row: str, mask: str) -> list[str]:
        return [
            f"{name}{p} = tl.load({self.address(tensor, row, k)}, mask={mask}, other=0.0)"
            ".to(tl.float32)"
            for k, p in enumerate(self.parts)
        ]

    def store(self, tensor: str, row: str, name: str, mask: str, *, wide: bool) -> list[str]:
        return [
            f"tl.store({self.address(tensor, row, k)}, "
            + (f"{name}{p}" if wide else f"stored({name}{p})")
            + f", mask={mask})"
            for k, p in enumerate(self.parts)
        ]

    def fill(self, name: str, value: float) -> list[str]:
        return [
            f"{name}{p} = tl.full((d_per_program,), {value if k == 0 else 0.0}, tl.float32)"
            for k, p in enumerate(self.parts)
        ]

    def multiply(self, name: str, x: str, y: str, *, conjugate: bool = False) -> list[str]:
        """name = x y, or x conj(y)."""
        if len(self.parts) == 1:
            return [f"{name} = {x} * {y}"]
        sign, other = ("+", "-") if conjugate else ("-", "+")
        return [
            f"{name}_re, {name}_im = {x}_re * {y}_re {sign} {x}_im * {y}_im, "
            f"{x}_im * {y}_re {other} {x}_re * {y}_im"
        ]

    def each(self, statement: str) -> list[str]:
        """The statement for every part, which {} stands for."""
        return [statement.replace("{}", p) for p in self.parts]


def emit_scan_linear(
    direction: str,
    dtype: Dtype,
    *,
    is_complex: bool,
    D: int,
    t_per_block: int,
    d_per_program: int,
    interpreted: bool = False,
) -> str:
    """The source of a direction's kernels: `totals`, `join` and `finish`. D: channels."""
    constants = {"D": D, "t_per_block": t_per_block, "d_per_program": d_per_program}
    title = f"Linear recurrence, {direction}{', complex' if is_complex else ''}"
    numbers = _Numbers(is_complex)
    backward = direction == BACKWARD
    inputs = ["a", "a_b", "a_t", *(["d_h", "d_h_b", "d_h_t"] if backward else ["b", "b_b", "b_t"])]
    strides = [name for name in inputs if "_" in name and name != "d_h"]
    results = ["h", "h_b", "h_t"]
    if backward:
        results += ["d_a", "d_a_b", "d_a_t", "d_b", "d_b_b", "d_b_t"]
    more = [name for name in results if name not in ("h", "d_a", "d_b")]
    initial = ["h0"] if backward else []
    return "\n".join(
        (
            scan_header(title, dtype, interpreted, constants, reduces=False),
            scan_kernel(
                "totals", [*inputs, "part_a", "part_h", *SIZES], [*strides, *SIZES],
                _totals(numbers, t_per_block, backward),
            ),
            scan_kernel(
                "join", ["before", "part_a", "part_h", "at_h", *SIZES], SIZES, _join(numbers)
            ),
            scan_kernel(
                "finish", [*inputs, *initial, "before", *results, "last", *SIZES],
                [*strides, *more, *SIZES], _finish(numbers, t_per_block, backward),
            ),
        )
    )  # fmt: skip


def _block(n: _Numbers, steps: int, backward: bool, each: list[list[str]]) -> str:
    """A loop over blocks: all loads of a block first; each[k]: what follows step k."""
    body = lines("for i in range(begin, end, t_per_block):")
    tensor = "d_h" if backward else "b"
    for k in range(steps):
        body += lines(
            f"t_{k} = i + {k}",
            f"inside_{k} = in_row & ((units * 0 + t_{k}) < end)",
            f"at_{k} = t_{k} + reverse * (T - 1 - 2 * t_{k})",
            depth=1,
        )
        factor, mask = f"at_{k}", f"inside_{k}"
        if backward:  # the factor that joins this step to the one before in this order
            factor, mask = f"at_{k} - 1 + 2 * reverse", f"inside_{k} & ((units * 0 + t_{k}) > 0)"
        body += lines(
            *n.load(f"a_{k}", "a", f"row * a_b + ({factor}).to(tl.int64) * a_t", mask),
            *n.load(
                f"b_{k}", tensor,
                f"row * {tensor}_b + at_{k}.to(tl.int64) * {tensor}_t", f"inside_{k}",
            ),
            depth=1,
        )  # fmt: skip
    for k in range(steps):
        body += lines(
            *n.multiply("x", "now", f"a_{k}", conjugate=backward),
            *n.each(f"now{{}} = tl.where(inside_{k}, x{{}} + b_{k}{{}}, now{{}})"),
            *each[k],
            depth=1,
        )
    return body


def _totals(n: _Numbers, steps: int, backward: bool) -> str:
    each = [
        [
            *n.multiply("y", "f", f"a_{k}", conjugate=backward),
            *n.each(f"f{{}} = tl.where(inside_{k}, y{{}}, f{{}})"),
        ]
        for k in range(steps)
    ]
    start = lines(*n.fill("now", 0.0), *n.fill("f", 1.0))
    end = lines(
        *n.store("part_a", "slot", "f", "in_row", wide=True),
        *n.store("part_h", "slot", "now", "in_row", wide=True),
    )
    return _PLACE + start + _block(n, steps, backward, each) + end


def _join(n: _Numbers) -> str:
    start = _start(n, "row")
    body = lines(
        *n.store("at_h", "row * chunks + c", "now", "in_row", wide=True),
        *n.load("f", "part_a", "row * chunks + c", "in_row"),
        *n.load("y", "part_h", "row * chunks + c", "in_row"),
        *n.multiply("x", "now", "f"),
        *n.each("now{} = x{} + y{}"),
        depth=1,
    )
    return _PLACE + start + lines("for c in range(chunks):") + body


def _start(n: _Numbers, slot: str) -> str:
    return lines(*n.fill("now", 0.0), "if before is not None:") + lines(
        *n.load("now", "before", slot, "in_row"), depth=1
    )


def _finish(n: _Numbers, steps: int, backward: bool) -> str:
    result, each = ("d_b" if backward else "h"), []
    for k in range(steps):
        to, inside = f"at_{k}.to(tl.int64)", f"inside_{k}"
        row = f"row * {result}_b + {to} * {result}_t"
        own = n.store(result, row, "now", inside, wide=False)
        if backward:
            first = f"((units * 0 + t_{k}) == T - 1)"
            older = f"row * h_b + (at_{k} + 1 - 2 * reverse).to(tl.int64) * h_t"
            own += [
                *n.load("y", "h", older, f"{inside} & ({first} == 0)"),
                "if h0 is not None:",
                *(
                    f"    {line}"
                    for line in (
                        *n.load("z", "h0", "row", f"{inside} & {first}"),
                        *n.each(f"y{{}} = tl.where({first}, z{{}}, y{{}})"),
                    )
                ),
                *n.multiply("z", "now", "y", conjugate=True),
                *n.store("d_a", f"row * d_a_b + {to} * d_a_t", "z", inside, wide=False),
            ]
        each.append(own)
    end = lines("if last is not None:") + lines(
        "if end == T:", *(f"    {s}" for s in n.store("last", "row", "now", "in_row", wide=True)),
        depth=1,
    )  # fmt: skip
    return _PLACE + _start(n, "slot") + _block(n, steps, backward, each) + end
