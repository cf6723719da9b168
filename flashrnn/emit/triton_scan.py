"""What the scans' Triton modules share: sums that keep what rounding loses, weights' factors.

A scan's carry is joined a block of steps at a time. Scans of Triton itself are not used: those with
several leaves, and those in reverse, give wrong results.
"""

from __future__ import annotations

from collections.abc import Mapping

from flashrnn.dtypes import Dtype
from flashrnn.emit.triton import IEEE, STORED, kernel, module_header

# The interpreter runs a reduction by a function of ours number by number, by its own with NumPy.
# It also takes a millisecond for each call of a function, so what is short is written out.
_REDUCTIONS = """
@triton.jit
def larger(x, y):
    return tl.maximum(x, y)


@triton.jit
def added(x, y):
    return x + y
"""
_INTERPRETED_REDUCTIONS = """
larger = tl.standard._elementwise_max
added = tl.standard._sum_combine
"""


def finite(m: str) -> str:
    """0 for the maximum of nothing: e^(-inf - 0) is 0, as it should be."""
    return f'tl.where({m} == float("-inf"), 0.0, {m})'


def ratio(old: str, new: str) -> str:
    """e^(old - new); 1 where they are equal, so that nothing minus nothing is not NaN."""
    return f"tl.exp(tl.where({old} == {new}, 0.0, {old} - {finite(new)}))"


def plus(total: str, kept: str, x: str) -> list[str]:
    """Statements: total * kept + x; what rounding loses of the sum is kept for the next (Kahan)."""
    return [
        f"{total}_kept, {total}_more = {total} * {kept}, {x} + {total}_lost * {kept}",
        f"{total} = {total}_kept + {total}_more",
        f"{total}_lost = {total}_more - ({total} - {total}_kept)",
    ]


def lines(*statements: str, depth: int = 0) -> str:
    """Statements as text, each at its depth in a kernel's body."""
    return "".join(f"{'    ' * depth}{s}\n" for s in statements)


def scan_header(
    title: str, dtype: Dtype, interpreted: bool, constants: Mapping[str, int], *, reduces: bool
) -> str:
    """The top of a scan's module, with its primitives; reduces: whether it sums over a tile."""
    top = module_header(f"{title}, {dtype.name}.", dtype, IEEE, interpreted, constants)
    parts = [top, STORED]
    if reduces:
        parts += [_INTERPRETED_REDUCTIONS if interpreted else _REDUCTIONS]
    return "\n".join(parts)


def scan_kernel(name: str, arguments: list[str], numbers: list[str], body: str) -> str:
    """A kernel of that name; blank lines, which parts bring along, are left out."""
    written = [line for line in body.splitlines() if line.strip()]
    return kernel(arguments, numbers, written, name)
