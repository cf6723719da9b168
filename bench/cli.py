"""flashrnn-bench run --suite NAME, flashrnn-bench show FILE, flashrnn-bench report FILE.

Exit status: 0 done, 1 failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import AutotuneError
from autotune.show import console
from bench.errors import BenchError, NoPage, Usage
from bench.suites import SUITES, Suite, suite_in, suite_of
from flashrnn.errors import FlashRNNError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
DEFAULT = "quick"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        suite = _suite(words)
        options = _parser(suite).parse_args(words)
        if options.command == "run":
            assert suite is not None
            _run(suite, options)
        elif options.command == "show":
            suite_in(options.file).show(console(), options.file)
        else:
            _report(options)
        return DONE
    except Usage as error:
        return _complain(str(error), USAGE)
    except (BenchError, AutotuneError, FlashRNNError, OSError) as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, status: int) -> int:
    print(f"flashrnn-bench: {message}", file=sys.stderr)
    return status


def _suite(words: list[str]) -> Suite | None:
    """The suite that is to be run: its options depend on it."""
    if "run" not in words[:1]:
        return None
    first = argparse.ArgumentParser(prog="flashrnn-bench run", add_help=False, allow_abbrev=False)
    first.add_argument("--suite", default=DEFAULT)
    return suite_of(first.parse_known_args(words)[0].suite)


def _parser(suite: Suite | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashrnn-bench", description="Time this library beside others, verified first."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    known = "; ".join(f"{name}: {entry.summary}" for name, entry in sorted(SUITES.items()))
    run = commands.add_parser(
        "run",
        help="verify and time a suite",
        epilog=f"suites: {known}. The other options are those of the suite that is named.",
        allow_abbrev=False,
    )
    run.add_argument("--suite", default=DEFAULT, metavar="NAME", help=f"default: {DEFAULT}")
    run.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the results as JSON (default: results/bench-SUITE.json)",
    )
    if suite is not None:
        suite.add_arguments(run)
    again = commands.add_parser("show", help="print what an earlier run wrote")
    again.add_argument("file", type=Path, metavar="FILE")
    page = commands.add_parser("report", help="an HTML page and pictures of an earlier run")
    page.add_argument("file", type=Path, metavar="FILE")
    page.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="where they go (default: FILE without its ending)",
    )
    return parser


def _run(suite: Suite, options: argparse.Namespace) -> None:
    output = options.output or Path("results") / f"bench-{options.suite}.json"
    output.parent.mkdir(parents=True, exist_ok=True)  # rather now than after the work
    suite.run(options, console(), output)


def _report(options: argparse.Namespace) -> None:
    suite = suite_in(options.file)
    if suite.report is None:
        raise NoPage(options.file)
    directory = options.output or options.file.with_suffix("")
    for path in suite.report(options.file, directory):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
