"""Read handwritten digits row by row with a fused LSTM, beside the same training in PyTorch.

scikit-learn ships 1,797 images of 8 x 8 pixels. An LSTM reads each as 8 steps of 8 pixels and a
linear layer names the digit from the last state. The training runs twice, with `flashrnn.layer`
and with `torch.nn.LSTM`, from the same weights and on the same batches.

    python examples/digits.py

The exit status is 1 if the fused model stays below 95 % on images that it has not seen, if its
training takes a minute, or if the two loss curves part within the first 50 steps.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import flashrnn

HIDDEN, BATCH, EPOCHS, LEARNING_RATE = 64, 64, 30, 3e-3
TEST_IMAGES = 453  # a quarter, and what is left makes 21 whole batches
SEED = 0
THREADS = 1  # a step takes a millisecond: too little to share
LEAST_ACCURACY, MOST_SECONDS = 0.95, 60.0
COMPARED_STEPS, MOST_DIFFERENCE = 50, 1e-4


class FusedLSTM(torch.nn.Module):
    """A drop-in for a one-layer torch.nn.LSTM whose last state is wanted, with its weights.

    Like its model it keeps two biases, of which only the sum counts: an optimizer moves each of
    them, so with a single one the same training would take other steps.
    """

    def __init__(self, like: torch.nn.LSTM) -> None:
        super().__init__()
        weights = dict(like.named_parameters())
        D, I = like.hidden_size, like.input_size
        self.W = torch.nn.Parameter(weights["weight_ih_l0"].detach().view(4, 1, D, I).clone())
        self.R = torch.nn.Parameter(weights["weight_hh_l0"].detach().view(4, 1, D, D).clone())
        self.b_input = torch.nn.Parameter(weights["bias_ih_l0"].detach().view(4, 1, D).clone())
        self.b_recurrent = torch.nn.Parameter(weights["bias_hh_l0"].detach().view(4, 1, D).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, B, I] -> [B, D]
        b = self.b_input + self.b_recurrent
        _, last = flashrnn.layer(x.transpose(0, 1), self.W, self.R, b, function="lstm")
        return last[0, :, 0, 0]  # state h, the only step, the only head


class TorchLSTM(torch.nn.Module):
    """torch.nn.LSTM, asked for the same."""

    def __init__(self, lstm: torch.nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, B, I] -> [B, D]
        _, (h, _) = self.lstm(x)
        return h[0]


@dataclass(frozen=True)
class Digits:
    """Images [T, images, I], values 0 to 1, and the digits that they show."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


@dataclass(frozen=True)
class Training:
    """What one training came to: the loss of each step, accuracy on the test images, seconds."""

    losses: list[float]
    accuracy: float
    seconds: float


def load() -> Digits:
    """The images, some of them kept for the test."""
    data = load_digits()
    rows = torch.tensor(data.images / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=TEST_IMAGES, random_state=SEED, stratify=labels
    )

    def steps_first(chosen: torch.Tensor) -> torch.Tensor:
        return rows[chosen].transpose(0, 1).contiguous()

    return Digits(steps_first(train), labels[train], steps_first(test), labels[test])


def train(recurrent: torch.nn.Module, linear: torch.nn.Linear, digits: Digits) -> Training:
    """Train both modules. Batches depend on nothing but SEED; what compiles is not timed."""
    model = torch.nn.Sequential(recurrent, linear)
    _step(copy.deepcopy(model), digits.train[:, :BATCH], digits.train_labels[:BATCH])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    shuffle = torch.Generator().manual_seed(SEED)
    losses = []
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(digits.train_labels), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            losses.append(_step(model, digits.train[:, batch], digits.train_labels[batch]))
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        guesses = model(digits.test).argmax(1)
    accuracy = (guesses == digits.test_labels).float().mean().item()
    return Training(losses, accuracy, seconds)


def _step(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    return loss.item()


def difference(fused: Training, torch_: Training) -> float:
    """The largest difference of the two losses in the steps that are compared."""
    mine, theirs = (torch.tensor(run.losses[:COMPARED_STEPS]) for run in (fused, torch_))
    return (mine - theirs).abs().max().item()  # nan if any of them is


def broken_promises(fused: Training, torch_: Training) -> list[str]:
    """What this example promises and did not keep, in words."""
    apart = difference(fused, torch_)
    found = []
    if not fused.accuracy >= LEAST_ACCURACY:
        found.append(f"accuracy {fused.accuracy:.3f} is below {LEAST_ACCURACY}")
    if not fused.seconds < MOST_SECONDS:
        found.append(f"training took {fused.seconds:.0f} s, {MOST_SECONDS:.0f} s are allowed")
    if not apart <= MOST_DIFFERENCE:
        found.append(f"the losses differ by {apart:.1e}, {MOST_DIFFERENCE:.0e} is allowed")
    return found


def main() -> int:
    torch.set_num_threads(THREADS)
    digits = load()
    torch.manual_seed(SEED)
    lstm = torch.nn.LSTM(input_size=digits.train.shape[2], hidden_size=HIDDEN)
    linear = torch.nn.Linear(HIDDEN, 10)
    fused = train(FusedLSTM(lstm), copy.deepcopy(linear), digits)
    torch_ = train(TorchLSTM(lstm), linear, digits)
    for name, run in (("flashrnn.layer", fused), ("torch.nn.LSTM", torch_)):
        print(
            f"{name:<15} accuracy {100 * run.accuracy:.1f} % on {len(digits.test_labels)} unseen "
            f"images, {len(run.losses)} steps in {run.seconds:.2f} s"
        )
    print(
        f"largest difference of the losses in {COMPARED_STEPS} steps: "
        f"{difference(fused, torch_):.1e}"
    )
    broken = broken_promises(fused, torch_)
    for words in broken:
        print(f"not as promised: {words}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
