"""The benchmark's shapes: the only place where they are written down."""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import UnknownSuite
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, Dtype


@dataclass(frozen=True)
class Suite:
    """Problems that are run together. A layer's input is as wide as its output, N * D."""

    dtype: Dtype
    shapes: tuple[Dims, ...]


SUITES = {
    # One sequence, a small and a larger batch: bound by latency, by both, by arithmetic.
    "quick": Suite(
        FLOAT32,
        (
            Dims(B=1, T=256, N=1, D=64),
            Dims(B=8, T=256, N=1, D=64),
            Dims(B=32, T=512, N=1, D=64),
        ),
    ),
}


def suite_of(name: str) -> Suite:
    """The suite of this name. Raises UnknownSuite, which lists the known names."""
    try:
        return SUITES[name]
    except KeyError:
        raise UnknownSuite(name, SUITES) from None
