"""autotune run KERNEL, autotune show, autotune devices.

Exit status: 0 done, 1 tuning failed, 2 bad usage, 130 interrupted (what was found is kept).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from autotune import cache, show
from autotune.compare import compare
from autotune.device import Device
from autotune.errors import AutotuneError, CacheWarning, NoGpu, UnknownKernel
from autotune.registry import Origin, load_family, registered, resolve
from autotune.space import Family
from autotune.tuner import tune_family

Number = TypeVar("Number", int, float)
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
OWN = {"command", "kernel", "budget", "top", "threads", "json", "quiet"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", CacheWarning)
            warnings.showwarning = _warn
            return _dispatch(words)
    except UnknownKernel as error:
        return _complain(str(error), USAGE)
    except AutotuneError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, status: int) -> int:
    print(f"autotune: {message}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *place: Any, **more: Any) -> None:
    """Show a warning without the place in the source that raised it."""
    print(f"autotune: warning: {message}", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    reference, family = "", None
    if len(words) > 1 and words[0] == "run" and not words[1].startswith("-"):
        reference = resolve(words[1])
        family = load_family(reference)
    options = _parser(family).parse_args(words)
    if options.command == "run":
        return _run(reference, options)
    if options.command == "show":
        return _show(options.kernel)
    return _devices()


def _parser(family: Family | None) -> argparse.ArgumentParser:
    """The parser; the options of `run` depend on the kernel, which therefore comes first."""
    known = ", ".join(sorted(registered())) or "none"
    parser = argparse.ArgumentParser(
        prog="autotune",
        description="Find the fastest configuration of a kernel on this machine, and remember it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="tune a kernel",
        description=f"Tune a kernel: {known}. Its own options: autotune run KERNEL --help.",
    )
    run.add_argument("kernel", metavar="KERNEL", help="a registered name, or module:attribute")
    run.add_argument(
        "--budget", type=_positive(float), default=30.0, metavar="SECONDS", help="default: 30"
    )
    run.add_argument(
        "--top",
        type=_positive(int),
        default=12,
        metavar="K",
        help="candidates to build, the cheapest by estimate (default: 12)",
    )
    run.add_argument(
        "--threads", type=_positive(int), metavar="N", help="default: the usable cores"
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    run.add_argument("--quiet", action="store_true", help="print errors only")
    if family is not None:
        family.add_arguments(run.add_argument_group(f"the problem ({family.name})"))
    remembered = commands.add_parser("show", help="what is remembered")
    remembered.add_argument("kernel", nargs="?", metavar="KERNEL", help="only this kernel's")
    commands.add_parser("devices", help="this machine's limits, and the known GPUs")
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


def _run(reference: str, options: argparse.Namespace) -> int:
    device = Device.current()
    problem = {name: value for name, value in vars(options).items() if name not in OWN}
    origin = Origin(reference, {**problem, "threads": options.threads or device.cores})
    try:
        origin.tunables()
    except ValueError as error:  # sizes that make no sense
        return _complain(str(error), USAGE)

    out = show.console(options.quiet)
    results = []
    with show.progress(out) as watch:
        for result in tune_family(
            origin, device, budget_seconds=options.budget, top_k=options.top, watch=watch
        ):
            results.append(result)
            show.result(out, result)
    interrupted = results and results[-1].interrupted
    rows = [] if interrupted else list(compare(origin, results))
    if rows:
        show.comparisons(out, rows)
    if options.json:
        report = {
            "kernel": options.kernel,
            "options": origin.options,
            "device": device.fingerprint,
            "results": [result.report() for result in results],
            "comparisons": [row.report() for row in rows],
        }
        try:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            return _complain(f"the report is not written: {error}", FAILED)
    return INTERRUPTED if interrupted else DONE


def _show(kernel: str | None) -> int:
    found = cache.entries()
    if kernel is not None:
        found = [e for e in found if e.name == kernel or e.name.startswith(f"{kernel} ")]
        if not found:
            resolve(kernel)  # raises for a name that nobody knows
    out = show.console()
    if found:
        show.memories(out, found, Device.current())
    else:
        out.print(f"nothing is remembered in {cache.cache_directory()}", soft_wrap=True)
    return DONE


def _devices() -> int:
    out = show.console()
    show.machine(out, Device.current())
    try:
        show.gpus(out, Device.current("cuda"))
    except NoGpu as error:
        show.gpus(out, error.why)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
