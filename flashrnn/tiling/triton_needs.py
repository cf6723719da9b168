"""What a fused Triton kernel will need: registers, estimated; shared memory, predicted.

Both are written in operations that integers and constrint's expressions share. The shared memory
follows from how Triton 3.9 lays products out and was exact in every kernel that was compiled for
this page. Registers are a fit to what ptxas took for sm_80 with a cap on registers, from the
structure of a cell: what lives at once in its pointwise part, its states, R's part of a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from constrint import Expression, largest_of, smallest_of
from constrint.expression import Operand
from flashrnn.ir.expression import CONSTANT, walk
from flashrnn.ir.expression import Expression as Node

WARP = 32
# Beyond, the assembler moves values around for fewer registers: of each further one that the
# formula counts, it takes a part.
SQUEEZED_FROM, SQUEEZED_PART = 200, 45  # registers, percent


@dataclass(frozen=True)
class Fit:
    """Registers of a thread, in hundredths.

    base; per value that lives at once, of each number of a tile; per state, of each number; per
    register of R; and per value of an operand's row, where products are not the tensor cores'.
    """

    base: int
    live: int
    state: int
    r: int
    operand: int = 0


TENSOR_FORWARD = Fit(base=2500, live=100, state=200, r=144)
TENSOR_BACKWARD = Fit(base=2700, live=45, state=300, r=130)
PLAIN_FORWARD = Fit(base=5000, live=100, state=200, r=144, operand=25)
PLAIN_BACKWARD = Fit(base=6000, live=45, state=300, r=130)


def registers(
    fit: Fit, live: int, states: int, D: int, r_words: Operand, b: Operand, d: Operand,
    warps: Operand,
) -> Operand:  # fmt: skip
    """Registers per thread, more than there are where the kernel would spill.

    live, states: of the cell. r_words: 4-byte words of R that registers hold, in all threads.
    b, d: a tile's rows and units; D: the terms of a product.
    """
    threads = WARP * warps
    per_number = fit.live * live + fit.state * states + fit.operand * D
    needed = fit.base + (per_number * b * d + fit.r * r_words) // threads
    squeezed = 100 * SQUEEZED_FROM + (needed - 100 * SQUEEZED_FROM) * SQUEEZED_PART // 100
    return _smallest(needed, squeezed) // 100


def shared_bytes(
    gates: int, held: Operand, item: int, b: Operand, d: Operand, *, operands: int
) -> Operand:
    """Bytes of shared memory per program.

    R of `held` of the gates passes through on its way to registers, one gate at a time; that of
    the others stays, beside `operands` tiles on their way to a product.
    """
    gate, tile = d * d * item, b * d * item
    if gates == 0:
        return 0
    passing = _smallest(held, 1) * (gate + tile)
    staying = _smallest(gates - held, 1) * (operands - 1) * tile + (gates - held) * gate + tile
    return _largest(passing, staying)


def live_values(roots: Sequence[Node]) -> int:
    """The most values that exist at once when the roots are computed in order."""
    order = [node for node in walk(roots) if node.op != CONSTANT]
    last_use = {a: at for at, node in enumerate(order) for a in node.arguments}
    last_use |= dict.fromkeys(roots, len(order))
    inputs = {node for node in order if not node.arguments}
    alive, most = set(inputs), len(inputs)
    for at, node in enumerate(order):
        alive.add(node)
        most = max(most, len(alive))
        alive = {x for x in alive if last_use.get(x, -1) > at}
    return most


def _smallest(x: Operand, y: Operand) -> Operand:
    if isinstance(x, Expression) or isinstance(y, Expression):
        return smallest_of(x, y)
    return min(x, y)


def _largest(x: Operand, y: Operand) -> Operand:
    if isinstance(x, Expression) or isinstance(y, Expression):
        return largest_of(x, y)
    return max(x, y)
