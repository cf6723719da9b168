"""What a fused Triton kernel will need: registers, estimated; shared memory, predicted.

Both are written in operations that integers and constrint's expressions share. The shared memory
follows from how Triton 3.9 lays products out and was exact in every kernel that was compiled for
this page; for Triton 3.6 to 3.8 it is a bound. Registers are a fit to what ptxas took for sm_80
with a cap on registers, from the structure of a cell: what lives at once in its pointwise part, its
states, R's part of a thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from constrint import Expression, largest_of, smallest_of
from constrint.expression import Operand
from flashrnn.ir.expression import CONSTANT, walk
from flashrnn.ir.expression import Expression as Node

WARP = 32
# Beyond, the assembler moves values around for fewer registers: of each further one that the
# formula counts, it takes a part.
SQUEEZED_FROM, SQUEEZED_PART = 200, 45  # registers, percent


# Triton before this version moves R back into shared memory, whatever a kernel does to hold it.
HOLDS_R = (3, 9)


@lru_cache(maxsize=1)
def holds_r() -> bool:
    """Whether the installed Triton keeps R in registers; without any, as the newest does."""
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return True
    return tuple(int(number) for number in re.findall(r"\d+", installed)[:2]) >= HOLDS_R


@dataclass(frozen=True)
class Fit:
    """Registers of a thread, in hundredths.

    base; of each number of a tile: per value that lives at once, per state, and where some of R
    stays in shared memory; and per word of R in registers. most_words: of the operands of one
    product, a thread's numbers times the terms of each, beyond which every kernel that was
    compiled spilled; products on the tensor cores have no such bound.
    """

    base: int
    live: int
    state: int
    staying: int = 0
    r: int = 0
    most_words: int | None = None


TENSOR_FORWARD = Fit(base=2290, live=125, state=88, staying=257, r=153)
TENSOR_BACKWARD = Fit(base=1720, live=65, state=306, staying=126, r=128)
PLAIN_FORWARD = Fit(base=9460, live=76, state=59, most_words=256)
PLAIN_BACKWARD = Fit(base=5900, live=63, state=150, most_words=512)


def registers(
    fit: Fit, live: int, states: int, staying: Operand, r_words: Operand, numbers: Operand,
    threads: Operand,
) -> Operand:  # fmt: skip
    """Registers per thread; more than a thread can have where the kernel would spill.

    live, states: of the cell. staying: gates whose R is in shared memory; r_words: 4-byte words
    of R that registers hold; numbers: of a tile; both in all threads.
    """
    per_number = fit.live * live + fit.state * states + fit.staying * _smallest(staying, 1)
    needed = fit.base + (per_number * numbers + fit.r * r_words) // threads
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
    return largest(passing, staying)


@lru_cache(maxsize=256)
def live_values(roots: tuple[Node, ...]) -> int:
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


def largest(x: Operand, y: Operand) -> Operand:
    if isinstance(x, Expression) or isinstance(y, Expression):
        return largest_of(x, y)
    return max(x, y)
