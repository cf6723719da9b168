"""Sums over the pieces of a sequence."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


class Sums:
    """Named sums, of which the first term is not added to anything."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor) -> None:
        self._sums[name] = self._sums[name].add_(x) if name in self._sums else x

    def add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Add a^T b, a [rows, m] and b [rows, n]."""
        if name in self._sums:
            self._sums[name].addmm_(a.t(), b)
        else:
            self._sums[name] = torch.mm(a.t(), b)

    def of(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The sum, zeros where nothing was added."""
        return self._sums[name].view(shape) if name in self._sums else like.new_zeros(shape)
