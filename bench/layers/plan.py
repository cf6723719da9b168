"""What a run of this suite is to do: cells, shapes, kinds of call, threads, peers, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import flashrnn.cells
from bench.errors import UnknownChoice
from bench.layers.problem import Kind, Subject
from bench.peers.torch_nn import MODULES
from bench.shapes import Shape
from flashrnn.dtypes import FLOAT32, Dtype
from flashrnn.ir.cell import Cell

# Compared with everything; more than one head where the cell's authors use them. Cells beyond
# these are compared with a plain loop.
HEADS = {"lstm": (1,), "gru": (1,), "elman": (1,), "elman_relu": (1,), "slstm": (1, 4)}


@dataclass(frozen=True)
class Plan:
    """peers: by name, None for all that are installed. seconds: of samples per case.

    minutes: after so many no further case begins; None for no end. rounds: the fewest of a case.
    """

    suite: str
    subjects: tuple[Subject, ...]
    shapes: tuple[Shape, ...]
    kinds: tuple[Kind, ...]
    threads: tuple[int, ...]
    seconds: float
    rounds: int
    peers: tuple[str, ...] | None = None
    minutes: float | None = None
    limits: bool = True  # whether the machine's and the call's overhead are measured too
    dtype: Dtype = FLOAT32

    @property
    def cases(self) -> int:
        return len(self.subjects) * len(self.shapes) * len(self.kinds) * len(self.threads)


def every_subject() -> tuple[Subject, ...]:
    """Every cell that comes with the library, the compared ones first."""
    names = [*HEADS, *(n for n in flashrnn.cells.__all__ if n not in HEADS)]
    return tuple(subject(name, heads) for name in names for heads in HEADS.get(name, (1,)))


def subject(name: str, heads: int) -> Subject:
    """The library's cell of this name. Raises UnknownChoice."""
    found = getattr(flashrnn.cells, name, None)
    if not isinstance(found, Cell):
        raise UnknownChoice("cell", name, flashrnn.cells.__all__)
    return Subject(found, heads, owns_product=name in MODULES)


def subjects_named(words: Sequence[str], shapes: Iterable[Shape]) -> tuple[Subject, ...]:
    """From "lstm" or "slstm:4" (heads), each once. Raises UnknownChoice."""
    found = []
    for word in words:
        name, _, heads = word.partition(":")
        counts = HEADS.get(name, (1,)) if not heads else (_count(word, heads),)
        found += [subject(name, count) for count in counts]
    for one in found:
        for shape in shapes:
            if shape.D % one.heads:
                raise UnknownChoice(
                    "cell", f"{one.cell.name}:{one.heads}", [f"heads that divide D = {shape.D}"]
                )
    return tuple(dict.fromkeys(found))


def _count(word: str, heads: str) -> int:
    if not heads.isdecimal() or int(heads) < 1:
        raise UnknownChoice("cell", word, ["CELL or CELL:HEADS, as in slstm:4"])
    return int(heads)
