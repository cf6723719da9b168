"""Take over a trained torch.nn model: replace its recurrent modules, compare outputs and speed.

A tagger with a bidirectional LSTM and a GRU is trained in PyTorch on a small task: mark where a
sequence of numbers has been rising for three steps. Then `flashrnn.nn.convert` replaces both
modules in place, with the trained weights.

    python examples/convert.py [--steps 150]

The exit status is 1 if the outputs differ by more than 1e-5. The speeds are what they are: both
are measured in turns, with one thread, and printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch

import flashrnn

INPUTS, HIDDEN, BATCH, T, STEPS, ROUNDS, SEED = 8, 64, 32, 50, 150, 15, 0
MOST_DIFFERENCE = 1e-5


class Tagger(torch.nn.Module):
    """Plain PyTorch: nothing in it knows of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.LSTM(INPUTS, HIDDEN, bidirectional=True, batch_first=True)
        self.mark = torch.nn.GRU(2 * HIDDEN, HIDDEN, batch_first=True)
        self.out = torch.nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, T, INPUTS] -> [B, T]
        return self.out(self.mark(self.read(x)[0])[0])[..., 0]


def batch(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers, the first column of which counts; marks where it has risen three times running."""
    x = torch.randn(BATCH, T, INPUTS, generator=g)
    risen = torch.nn.functional.pad((x[:, 1:, 0] > x[:, :-1, 0]).float(), (3, 0))
    return x, (risen.unfold(1, 3, 1).sum(2) == 3).float()


def train(model: torch.nn.Module, steps: int) -> float:
    """The share of right marks in the last batch."""
    g = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        x, marks = batch(g)
        optimizer.zero_grad()
        scores = model(x)
        torch.nn.functional.binary_cross_entropy_with_logits(scores, marks).backward()
        optimizer.step()
    return ((scores > 0) == (marks > 0)).float().mean().item()


def in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median milliseconds of each call; measured alternately, so that both see the same."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(ROUNDS + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if k >= 2:  # the first calls compile
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, %(default)s")
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Tagger()
    print(f"trained {steps} steps: {100 * train(model, steps):.1f} % of the marks are right")
    original = copy.deepcopy(model)
    print(flashrnn.nn.convert(model))
    x, marks = batch(torch.Generator().manual_seed(SEED + 1))
    with torch.no_grad():
        apart = (model(x) - original(x)).abs().max().item()
    print(f"largest difference of the outputs: {apart:.1e}")

    def inference(m: torch.nn.Module) -> None:
        with torch.no_grad():
            m(x)

    def training(m: torch.nn.Module) -> None:
        torch.nn.functional.binary_cross_entropy_with_logits(m(x), marks).backward()

    for what, call in (("inference", inference), ("training", training)):
        times = in_turns({"torch.nn": lambda: call(original), "flashrnn.nn": lambda: call(model)})  # noqa: B023
        ratio = times["torch.nn"] / times["flashrnn.nn"]
        told = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
        print(f"{what:<9} {told}: {ratio:.2f} times as fast")
    if not apart <= MOST_DIFFERENCE:
        print(f"not as promised: the outputs differ by {apart:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
