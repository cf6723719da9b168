"""Keep track of a state for longer than in training: parity and counting modulo 5.

Symbols 0 .. K-1 arrive one by one, and after each the model names their sum modulo K; K = 2 is
parity. Trained on sequences of 2 to 40 symbols, tested on 256. A recurrent model can learn the rule
itself, which holds for any length; a Transformer of as many weights learns sums of few symbols.

    python examples/parity.py [--tasks parity modular] [--models lstm slstm transformer]

The exit status is 1 if a recurrent model names less than 95 % of the sums after 256 symbols, or the
Transformer more than 60 %.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

import flashrnn

TASKS = {"parity": 2, "modular": 5}
MODELS = ("lstm", "slstm", "transformer")
HIDDEN, LONGEST, TEST_LENGTH, TEST_ROWS = 64, 40, 256, 512
BATCH, STEPS, SEED, THREADS = 64, 750, 0, 1
LEAST_RECURRENT, MOST_TRANSFORMER = 0.95, 0.6


class Recurrent(torch.nn.Module):
    """Symbols in, one of K names out after each, by one recurrent layer."""

    def __init__(self, kind: str, K: int) -> None:
        super().__init__()
        self.K = K
        layer = {"lstm": flashrnn.nn.LSTM, "slstm": flashrnn.nn.SLSTM}[kind]
        self.rnn = layer(K, HIDDEN, batch_first=True)
        self.out = torch.nn.Linear(HIDDEN, K)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight"):  # large enough that gates differ between symbols
                torch.nn.init.normal_(parameter, 0.0, 1.0 / parameter.shape[1] ** 0.5)
            else:
                torch.nn.init.zeros_(parameter)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:  # [B, T] -> [B, T, K]
        x = torch.nn.functional.one_hot(symbols, self.K).float()
        return self.out(self.rnn(x)[0])


class Transformer(torch.nn.Module):
    """The same by two causal Transformer layers with sinusoidal positions (Vaswani et al. 2017)."""

    def __init__(self, K: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(K, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2)
        self.out = torch.nn.Linear(width, K)
        rate = 10000.0 ** (torch.arange(0, width, 2) / width)
        angle = torch.arange(TEST_LENGTH)[:, None] / rate
        self.register_buffer("positions", torch.cat((angle.sin(), angle.cos()), 1))

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:  # [B, T] -> [B, T, K]
        T = symbols.shape[1]
        x = self.embedding(symbols) + self.positions[:T]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
        return self.out(self.layers(x, mask=mask, is_causal=True))


def batch(rows: int, T: int, K: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols [rows, T] and their sums so far, modulo K."""
    symbols = torch.randint(0, K, (rows, T), generator=g)
    return symbols, symbols.cumsum(1) % K


def train(model: torch.nn.Module, K: int, steps: int, rate: float) -> None:
    """Every length is as likely as any other."""
    g = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        T = int(torch.randint(2, LONGEST + 1, (), generator=g))
        symbols, sums = batch(BATCH, T, K, g)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(symbols).mT, sums).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def test(model: torch.nn.Module, K: int) -> tuple[float, float]:
    """How many sums are right: within the lengths of the training, and at the last position."""
    symbols, sums = batch(TEST_ROWS, TEST_LENGTH, K, torch.Generator().manual_seed(SEED + 1))
    right = (model.eval()(symbols).argmax(2) == sums).float()
    return right[:, :LONGEST].mean().item(), right[:, -1].mean().item()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, %(default)s")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    broken = []
    for task in chosen.tasks:
        for kind in chosen.models:
            torch.manual_seed(SEED)
            K = TASKS[task]
            transformer = kind == "transformer"
            model = Transformer(K) if transformer else Recurrent(kind, K)
            weights = sum(p.numel() for p in model.parameters())
            start = time.perf_counter()
            train(model, K, chosen.steps, 1e-3 if transformer else 3e-3)
            seconds = time.perf_counter() - start
            within, beyond = test(model, K)
            print(
                f"{task:<8} {kind:<12} {weights} weights, trained {seconds:.0f} s: "
                f"up to {LONGEST} {100 * within:.1f} %, at {TEST_LENGTH} {100 * beyond:.1f} %",
                flush=True,
            )
            if transformer and beyond > MOST_TRANSFORMER:
                broken.append(f"{task}: the Transformer is right in {beyond:.3f} of the cases")
            if not transformer and not beyond >= LEAST_RECURRENT:
                broken.append(f"{task}: the {kind} is right in {beyond:.3f} of the cases")
    for words in broken:
        print(f"not as promised: {words}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
