"""Process a 16 kHz signal while it arrives: frame by frame, with a histogram of the latencies.

A synthetic signal, a gliding tone in noise, comes in frames of 10 ms. Two GRU layers take each
frame with one call of step() and keep their state; a frame must be done before the next one is
there. What comes out is compared with one call for the whole signal.

    python examples/streaming.py [--seconds 20] [--paced]

--paced lets frames arrive by the clock. The exit status is 1 if the two outputs differ, or if more
than 1 % of the frames are late.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import torch

import flashrnn

RATE, FRAME, HIDDEN = 16_000, 160, 256  # samples per second, samples per frame, units
PERIOD = FRAME / RATE  # seconds
SECONDS, SEED, WARM_UP = 20.0, 0, 20
MOST_DIFFERENCE, MOST_LATE = 1e-4, 0.01


class Filter(torch.nn.Module):
    """Frames of samples in, frames of samples out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = flashrnn.nn.GRU(FRAME, HIDDEN, num_layers=2)
        self.out = torch.nn.Linear(HIDDEN, FRAME)

    def forward(self, frames):  # [T, FRAME] -> [T, FRAME]
        return self.out(self.rnn(frames)[0])

    def step(self, frame, state):  # [FRAME] -> [FRAME], state
        h, state = self.rnn.step(frame, state)
        return self.out(h), state


def signal(seconds: float) -> torch.Tensor:
    """A tone that glides between 200 and 1,000 Hz, in noise: frames [T, FRAME]."""
    frames = max(1, round(seconds / PERIOD))
    t = torch.arange(frames * FRAME) / RATE
    frequency = 600 + 400 * torch.sin(2 * math.pi * 0.5 * t)
    phase = 2 * math.pi * (frequency / RATE).double().cumsum(0)
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(SEED))
    return (phase.sin().float() + 0.3 * noise).view(frames, FRAME)


@torch.no_grad()
def stream(model: Filter, frames: torch.Tensor, paced: bool) -> tuple[torch.Tensor, list[float]]:
    """The outputs, and the seconds from each frame's arrival to its output."""
    for frame in frames[:WARM_UP]:  # compiles, and wakes the machine
        model.step(frame, None)
    state, outputs, latencies = None, [], []
    begin = time.perf_counter()
    for k, frame in enumerate(frames):
        arrival = time.perf_counter()
        if paced:
            arrival = begin + k * PERIOD
            time.sleep(max(0.0, arrival - time.perf_counter()))
        output, state = model.step(frame, state)
        latencies.append(time.perf_counter() - arrival)
        outputs.append(output)
    return torch.stack(outputs), latencies


def histogram(seconds: list[float], bars: int = 40) -> str:
    """Counts of latencies, a bin twice as wide as the one before."""
    smallest = math.floor(math.log2(max(min(seconds), 1e-7)))
    bins: dict[int, int] = {}
    for s in seconds:
        k = max(smallest, math.floor(math.log2(max(s, 1e-7))))
        bins[k] = bins.get(k, 0) + 1
    most = max(bins.values())
    lines = []
    for k in range(min(bins), max(bins) + 1):
        count = bins.get(k, 0)
        bar = "#" * math.ceil(bars * count / most)
        lines.append(f"{2.0**k * 1e6:9.0f} to {2.0 ** (k + 1) * 1e6:6.0f} us {count:7} {bar}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of signal, %(default)s")
    parser.add_argument("--paced", action="store_true", help="frames arrive by the clock")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model, frames = Filter().eval(), signal(chosen.seconds)
    outputs, latencies = stream(model, frames, chosen.paced)
    with torch.no_grad():
        apart = (outputs - model(frames)).abs().max().item()
    late = sum(s > PERIOD for s in latencies) / len(latencies)
    ordered = sorted(latencies)
    print(histogram(latencies))
    median, most, longest = (1e6 * ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.99, 1.0))
    print(
        f"{len(frames)} frames of {1e3 * PERIOD:.0f} ms: median {median:.0f} us, 99 % within "
        f"{most:.0f} us, longest {longest:.0f} us, {100 * late:.2f} % late"
    )
    print(f"largest difference from one call for the whole signal: {apart:.1e}")
    broken = []
    if not apart <= MOST_DIFFERENCE:
        broken.append(f"outputs differ by {apart:.1e}")
    if late > MOST_LATE:
        broken.append(f"{100 * late:.1f} % of the frames are late")
    for words in broken:
        print(f"not as promised: {words}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
