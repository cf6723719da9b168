"""Predict the yearly sunspots with Aaren, beside a causal Transformer of the same size.

statsmodels ships the sunspots from 1700 to 2008. Both models read the years one after the other
and predict the next one; they have the same blocks, but Aaren's queries are learned and constant,
so it streams in constant memory, where the Transformer keeps a key and a value per year.

    python examples/aaren_series.py            # trains both with three seeds, plots
    python examples/aaren_series.py --short    # a few steps of each, for tests

The exit status is 1 if the two losses differ by more than the noise between seeds, if streaming
gives another prediction than the parallel pass, or if Aaren's state grows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from statsmodels.datasets import sunspots

from flashrnn.attention import AarenStack

WIDTH, HEADS, LAYERS = 32, 4, 2
# Aaren has no query projection; its feed-forward layer is wider by as many weights.
FEEDFORWARD = {"Aaren": 80, "Transformer": 64}
TRAINED = 230  # years; the rest is the test
STEPS, LEARNING_RATE, SEEDS = 300, 3e-3, (0, 1, 2)
WINDOW = 96


class Forecaster(torch.nn.Module):
    """An embedding, blocks, and one number out: next year's value."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = torch.nn.Linear(1, WIDTH)
        self.out = torch.nn.Linear(WIDTH, 1)
        if kind == "Aaren":
            self.body: torch.nn.Module = AarenStack(LAYERS, WIDTH, HEADS, FEEDFORWARD[kind])
        else:
            layer = torch.nn.TransformerEncoderLayer(
                WIDTH, HEADS, FEEDFORWARD[kind], dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )  # fmt: skip
            norm = torch.nn.LayerNorm(WIDTH)
            self.body = torch.nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False)
            self.register_buffer("position", waves(WINDOW))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T] -> the prediction of the next value after each step, [B, T]."""
        y = self.embed(x.unsqueeze(-1))
        if self.kind == "Aaren":
            y, _ = self.body(y)
        else:
            T = x.shape[1]
            mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
            y = self.body(y + self.position[:T], mask=mask, is_causal=True)
        return self.out(y).squeeze(-1)

    def stream(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The same one step at a time, and the bytes of the state after each (Aaren alone)."""
        states, predictions, sizes = None, [], []
        for t in range(x.shape[1]):
            y, states = self.body.step(self.embed(x[:, t, None]), states)
            predictions.append(self.out(y).squeeze(-1))
            sizes.append(sum(p.untyped_storage().nbytes() for s in states for p in s))
        return torch.stack(predictions, 1), sizes


def waves(length: int) -> torch.Tensor:
    """The positions of "Attention is all you need", section 3.5: [length, WIDTH]."""
    turns = torch.arange(length).unsqueeze(1) / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.stack((turns.sin(), turns.cos()), -1).flatten(1)


@dataclass(frozen=True)
class Trained:
    model: Forecaster
    loss: float  # mean squared error on the years that were not trained on
    curve: list[float]


def series() -> torch.Tensor:
    """The square roots of the counts, standardised: [309]."""
    counts = torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()).float()
    roots = counts.sqrt()
    return (roots - roots[:TRAINED].mean()) / roots[:TRAINED].std()


def train(kind: str, seed: int, steps: int) -> Trained:
    """Windows at random places of the trained years."""
    torch.manual_seed(seed)
    data, model = series(), Forecaster(kind)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = []
    for _ in range(steps):
        starts = torch.randint(0, TRAINED - WINDOW - 1, (16,))
        windows = torch.stack([data[s : s + WINDOW + 1] for s in starts.tolist()])
        loss = (model(windows[:, :-1]) - windows[:, 1:]).square()[:, 8:].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
    return Trained(model, test_loss(model, data), curve)


@torch.no_grad()
def test_loss(model: Forecaster, data: torch.Tensor) -> float:
    """Each unseen year from the WINDOW years before it."""
    windows = data[TRAINED - WINDOW :].unfold(0, WINDOW + 1, 1)
    return (model(windows[:, :-1])[:, -1] - windows[:, -1]).square().mean().item()


def plot(path: Path, runs: dict[str, list[Trained]], sizes: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, memory) = plt.subplots(1, 2, figsize=(10, 4))
    for kind, trained in runs.items():
        for i, run in enumerate(trained):
            losses.plot(
                run.curve, label=kind if i == 0 else None, color=f"C{list(runs).index(kind)}"
            )
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    losses.legend()
    cache = [LAYERS * 2 * WIDTH * 4 * (t + 1) for t in range(len(sizes))]
    memory.plot(sizes, label="Aaren's state")
    memory.plot(cache, label="keys and values")
    memory.set(xlabel="year", ylabel="bytes while streaming")
    memory.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps, no comparison of losses")
    parser.add_argument("--plot", type=Path, default=Path("results/aaren_series.png"))
    options = parser.parse_args(arguments)
    steps, seeds = (20, SEEDS[:1]) if options.short else (STEPS, SEEDS)
    runs = {kind: [train(kind, s, steps) for s in seeds] for kind in ("Aaren", "Transformer")}
    means = {}
    for kind, trained in runs.items():
        losses = [t.loss for t in trained]
        count = sum(p.numel() for p in trained[0].model.parameters())
        means[kind] = statistics.mean(losses)
        print(f"{kind:12} {count} parameters  test loss {means[kind]:.4f}  "
              f"({', '.join(f'{x:.4f}' for x in losses)})")  # fmt: skip
    data, model = series().unsqueeze(0), runs["Aaren"][0].model
    with torch.no_grad():
        streamed, sizes = model.stream(data)
        apart = (streamed - model(data)).abs().max().item()
    print(f"streaming against parallel: {apart:.1e}; state: {sizes[0]} to {sizes[-1]} bytes")
    failed = apart > 1e-4 or len(set(sizes)) != 1
    if not options.short:
        noise = max(statistics.stdev(t.loss for t in trained) for trained in runs.values())
        difference = abs(means["Aaren"] - means["Transformer"])
        print(f"losses differ by {difference:.4f}; between seeds by {noise:.4f}")
        failed |= difference > 3 * noise
        plot(options.plot, runs, sizes)
        print(f"plotted: {options.plot}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
