"""The benchmark's shapes: the only place where they are written down."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.errors import UnknownChoice
from flashrnn.dims import Dims


@dataclass(frozen=True)
class Shape:
    """A layer: batch B, time T, and its width D, which its heads share out."""

    B: int
    T: int
    D: int

    def dims(self, heads: int) -> Dims:
        """The recurrence in so many heads, which must divide D."""
        if self.D % heads:
            raise ValueError(f"{heads} heads do not divide a width of {self.D}")
        return Dims(self.B, self.T, heads, self.D // heads)

    @staticmethod
    def of(dims: Dims) -> Shape:
        return Shape(dims.B, dims.T, dims.hidden_size)

    @staticmethod
    def parse(text: str) -> Shape:
        """From "BxTxD". Raises UnknownChoice."""
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
        if not found:
            raise UnknownChoice("shape", text, ["BxTxD, as in 8x256x64"])
        return Shape(*(int(number) for number in found.groups()))

    def __str__(self) -> str:
        return f"{self.B}x{self.T}x{self.D}"


# From one short sequence to a large batch of wide layers: bound by latency, by the bandwidth of
# each cache, by arithmetic.
CPU = (
    Shape(1, 256, 64),
    Shape(1, 1024, 64),
    Shape(1, 256, 256),
    Shape(8, 256, 64),
    Shape(8, 256, 128),
    Shape(16, 256, 256),
    Shape(32, 512, 64),
    Shape(16, 128, 768),
    Shape(64, 128, 512),
)
# One sequence, a small and a larger batch.
QUICK = (Shape(1, 256, 64), Shape(8, 256, 64), Shape(32, 512, 64))
# One head that a program can hold, many, and one that none can.
GPU = (Shape(16, 256, 64), Shape(16, 256, 128), Shape(16, 256, 768), Shape(64, 256, 1024))


@dataclass(frozen=True)
class Stack:
    """A whole module: batch B, time T, and torch.nn's arguments."""

    B: int
    T: int
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool

    def __str__(self) -> str:
        directions = "bidirectional" if self.bidirectional else "one direction"
        layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
        sizes = f"B={self.B} T={self.T}, {self.input_size}→{self.hidden_size}"
        return f"{sizes}, {layers}, {directions}"


# What the goals are about, and the smallest call: what a module costs besides its kernels.
MODULES, SMALLEST_MODULE = Stack(8, 256, 128, 256, 2, True), Stack(1, 1, 64, 64, 1, False)
