"""Times the enumeration of the given spaces by constrint and by every peer installed.

    python -m bench.constrint.suite [--space NAME] [--repeat 5] [--json FILE]

One thread, process CPU seconds, reading the conditions included, the median of interleaved
runs; all answers are compared as sets with constrint's.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from bench.constrint.peers import PEERS, Peer, Rows, TooLarge  # noqa: E402 (after the threads)

SPACES = Path(__file__).parents[2] / "tests" / "constrint" / "data" / "spaces"
SLOW = 2.0
"""A peer that takes longer than this many seconds is timed once."""


class WrongAnswer(Exception):
    """A peer's set of configurations differs from constrint's."""


def time_space(data: dict[str, Any], peers: Sequence[Peer], repeat: int) -> dict[str, float]:
    """Median CPU seconds per peer on one space; peers for which it is too large are left out."""
    times: dict[str, list[float]] = {}
    expected: Rows | None = None
    for turn in range(repeat + 1):
        for peer in peers:
            taken = times.get(peer.name)
            if turn and (taken is None or taken[0] > SLOW):
                continue
            start = process_time()
            try:
                answer = peer.ask(data["params"], data["constraints"])
            except TooLarge:
                continue
            seconds = process_time() - start
            if turn == 0:  # the first run warms up, and is compared; it counts only if slow
                rows = peer.rows(data["params"], answer)
                expected = rows if expected is None else expected
                if rows != expected and peer.name != "CP-SAT":
                    raise WrongAnswer(f"{peer.name} differs on {data['name']}")
                if peer.name == "CP-SAT" and not rows <= expected:
                    raise WrongAnswer(f"CP-SAT found wrong solutions of {data['name']}")
            times.setdefault(peer.name, []).append(seconds)
    assert expected is not None and len(expected) == data["valid"]
    return {name: median(t[1:]) if len(t) > 1 else t[0] for name, t in times.items()}


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 1 of nothing."""
    return prod(values) ** (1 / len(values)) if values else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite and prints a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", action="append", help="only this space (may be repeated)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cpsat", action="store_true", help="ask CP-SAT too: up to a minute each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # kernel-tuner rewrites conditions into some that warn
    peers = [p for p in PEERS if p.installed() and (options.cpsat or p.name != "CP-SAT")]
    print("CPU milliseconds, median of", options.repeat)
    print(f"{'space':30}{'solutions':>10}" + "".join(f"{p.name:>20}" for p in peers))
    results: dict[str, dict[str, float]] = {}
    large: list[tuple[float, float | None]] = []
    for path in sorted(SPACES.glob("*.json")):
        data = json.loads(path.read_text())
        if options.space and data["name"] not in options.space:
            continue
        times = results[data["name"]] = time_space(data, peers, options.repeat)
        cells = [f"{times[p.name] * 1e3:20.2f}" if p.name in times else f"{'-':>20}" for p in peers]
        print(f"{data['name']:30}{data['valid']:>10}" + "".join(cells), flush=True)
        ours = times["constrint columns"]
        rivals = [times[p.name] for p in peers[1:] if p.materialises and p.name in times]
        if data["valid"] >= 100_000 and rivals:
            naive = times.get("NumPy filter")
            large.append((min(rivals) / ours, naive / ours if naive is not None else None))
    if large:
        print(
            f"\nspaces of at least 100,000 solutions, columns, geometric means: "
            f"{geometric_mean([a for a, _ in large]):.0f} times the best peer that materialises, "
            f"{geometric_mean([b for _, b in large if b is not None]):.1f} times the NumPy filter"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
