"""flashrnn-bench run --suite NAME, flashrnn-bench show FILE.

Exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from autotune.errors import AutotuneError
from autotune.show import console, progress
from bench import report, show
from bench.errors import BenchError, UnknownSuite
from bench.run import run, tune
from bench.shapes import SUITES, suite_of
from flashrnn.errors import FlashRNNError

Number = TypeVar("Number", int, float)
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "show":
            show.report(console(), report.read(options.file))
        else:
            _run(options)
        return DONE
    except UnknownSuite as error:
        return _complain(str(error), USAGE)
    except (BenchError, AutotuneError, FlashRNNError, OSError) as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, status: int) -> int:
    print(f"flashrnn-bench: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashrnn-bench", description="Time fused layers beside what PyTorch offers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="verify and time a suite")
    known = ", ".join(sorted(SUITES))
    run.add_argument("--suite", default="quick", metavar="NAME", help=f"{known} (default: quick)")
    run.add_argument(
        "--threads", type=_positive(int), default=1, metavar="N", help="for everyone (default: 1)"
    )
    run.add_argument(
        "--seconds",
        type=_positive(float),
        default=3.0,
        metavar="S",
        help="of samples per case (default: 3)",
    )
    run.add_argument(
        "--tune",
        type=_positive(float),
        metavar="SECONDS",
        help="tune the kernels of each shape first, and remember the result",
    )
    run.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="every sample as JSON (default: results/bench-SUITE.json)",
    )
    again = commands.add_parser("show", help="print what an earlier run wrote")
    again.add_argument("file", type=Path, metavar="FILE")
    return parser


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    """An argparse type: a finite number above zero."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse prints it
    return parse


def _run(options: argparse.Namespace) -> None:
    suite = suite_of(options.suite)
    output = options.output or Path("results") / f"bench-{options.suite}.json"
    output.parent.mkdir(parents=True, exist_ok=True)  # rather now than after the work
    out = console()
    with progress(out) as watch:
        if options.tune:
            for dims, result in tune(
                suite, threads=options.threads, seconds=options.tune, watch=watch
            ):
                show.tuned(out, dims, result)
        found = run(
            options.suite,
            threads=options.threads,
            seconds=options.seconds,
            step=lambda case, done, total: watch(case, "time", done, total),
        )
    show.report(out, found)
    report.write(found, output)
    out.print(f"every sample: {output}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
