"""A character language model of the licences that are installed with Python.

The texts are those of the interpreter and of all installed packages, each once. An LSTM reads them
in 64 streams and is trained on pieces of 64 characters; its state goes on from piece to piece. It
is compared with counts of characters and of pairs of characters on text that it has not seen.

    python examples/licences.py [--steps 600]

The exit status is 1 if the model needs more bits per character than the pairs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import sysconfig
import time
from pathlib import Path

import torch

import flashrnn

HIDDEN, EMBEDDING, STREAMS, PIECE, STEPS = 192, 48, 64, 64, 600
MOST_CHARACTERS, LEAST_CHARACTERS = 600_000, 20_000
SEED, THREADS, SAMPLE = 0, 2, 300
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # everything else becomes a blank


def licence_texts() -> list[str]:
    """Every licence file that can be found, once; none is no error."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("LICENSE*"))
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or []:
            name = file.name.upper()
            if name.startswith(("LICEN", "COPYING", "NOTICE")) and not name.endswith(".PY"):
                paths.append(Path(str(file.locate())))
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:  # listed, but not installed
            continue
    return sorted(set(texts))


def corpus() -> str:
    """The licences; where there are too few, Python's own help on its language instead."""
    text = "\n".join(licence_texts())
    if len(text) < LEAST_CHARACTERS:
        from pydoc_data import topics

        print("few licences found: reading Python's help topics instead")
        text = "\n".join(topics.topics.values())
    return text


def encode(text: str) -> torch.Tensor:
    """Characters as places in the alphabet, without repeated blanks."""
    words = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    place = {c: k for k, c in enumerate(ALPHABET)}
    return torch.tensor([place.get(c, 1) for c in words])


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(ALPHABET), EMBEDDING)
        self.rnn = flashrnn.nn.LSTM(EMBEDDING, HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, len(ALPHABET))

    def forward(self, x, state=None):  # [T, B] -> [T, B, characters], state
        h, state = self.rnn(self.embedding(x), state)
        return self.out(h), state


def bits(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten()) / 0.6931472


def train(model: Model, text: torch.Tensor, steps: int) -> None:
    """Truncated back-propagation through time: the state is detached between pieces."""
    length = len(text) // STREAMS
    streams = text[: length * STREAMS].view(STREAMS, length).T
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    state, at = None, 0
    for step in range(steps):
        if at + PIECE + 1 > length:
            state, at = None, 0
        piece = streams[at : at + PIECE + 1]
        at += PIECE
        optimizer.zero_grad()
        scores, state = model(piece[:-1], state)
        state = tuple(s.detach() for s in state)
        loss = bits(scores, piece[1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4}: {loss.item():.2f} bits per character")


def counted(train_: torch.Tensor, test: torch.Tensor, pairs: bool) -> float:
    """Bits per character by the frequencies of characters, or of characters after each other."""
    K = len(ALPHABET)
    before = train_[:-1] if pairs else torch.zeros_like(train_[:-1])
    counts = torch.bincount(before * K + train_[1:], minlength=K * K).view(K, K) + 0.1
    chance = counts / counts.sum(1, keepdim=True)
    before = test[:-1] if pairs else torch.zeros_like(test[:-1])
    return -chance[before, test[1:]].log2().mean().item()


@torch.no_grad()
def sample(model: Model, start: str, count: int) -> str:
    """Go on from a text, one step() at a time."""
    g = torch.Generator().manual_seed(SEED)
    scores, state = model(encode(start)[:, None])
    scores, text = scores[-1], start
    for _ in range(count):
        drawn = torch.multinomial((scores / 0.6).softmax(1), 1, generator=g)[:, 0]
        text += ALPHABET[int(drawn)]
        h, state = model.rnn.step(model.embedding(drawn), state)
        scores = model.out(h)
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, %(default)s")
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    text = encode(corpus())[:MOST_CHARACTERS]
    cut = len(text) * 9 // 10
    seen, unseen = text[:cut], text[cut:]
    print(f"{len(seen)} characters to train on, {len(unseen)} to test on")
    model = Model()
    start = time.perf_counter()
    train(model, seen, steps)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        scores, _ = model.eval()(unseen[:-1, None])
        found = bits(scores, unseen[1:, None]).item()
    one, two = (counted(seen, unseen, pairs) for pairs in (False, True))
    print(f"trained {steps} steps in {seconds:.0f} s")
    print(f"bits per unseen character: characters {one:.2f}, pairs {two:.2f}, LSTM {found:.2f}")
    print("---\n" + sample(model, "Permission is ", SAMPLE))
    if not found < two:
        print("not as promised: the LSTM predicts worse than pairs of characters", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
