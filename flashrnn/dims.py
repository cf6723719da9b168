"""The dimension letters of the library, and how many elements of each a problem has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dims:
    """Sizes of one recurrence.

    B batch, T time steps, N heads, D head dimension (P, the contracted dimension of the
    recurrent weights, equals D). `hidden_size` is N * D.
    """

    B: int
    T: int
    N: int
    D: int

    @property
    def hidden_size(self) -> int:
        return self.N * self.D

    @property
    def products(self) -> int:
        """Multiply-adds of one gate's recurrent products."""
        return self.B * self.T * self.N * self.D * self.D

    def __str__(self) -> str:
        return f"B={self.B} T={self.T} N={self.N} D={self.D}"
