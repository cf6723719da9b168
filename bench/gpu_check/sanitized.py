"""python -m bench.gpu_check.sanitized: small calls of backend="cuda", to run in a checker.

Head sizes for which the model takes one block, a cluster where there are clusters, and a grid.
"""

from __future__ import annotations

from itertools import product

import torch

from flashrnn import flashrnn
from flashrnn.cells import gru, lstm
from flashrnn.ir.cell import Cell

B, T, N = 17, 3, 2
HEAD_DIMS = (64, 256, 1024)


def main(device: str = "cuda") -> None:
    """Forward and backward of two cells at each size."""
    for cell, D in product((lstm, gru), HEAD_DIMS):
        call(cell, D, device)
        print(f"{cell.name}, D={D}: ran", flush=True)


def call(cell: Cell, D: int, device: str) -> None:
    """One forward and backward pass, with lengths."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    wx, r = random(B, T, len(cell.input), N, D), random(len(cell.recurrent), N, D, D)
    lengths = torch.arange(B) % (T + 1)
    states, last = flashrnn(wx, r, function=cell, backend="cuda", lengths=lengths)
    (states.sum() + last.sum()).backward()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
