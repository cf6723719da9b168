"""autotune run KERNEL, autotune compile KERNEL, autotune show, autotune devices.

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

from autotune import cache, show, show_compiled
from autotune.compare import compare
from autotune.compiling import LIMIT_SECONDS, compilers, conflicts, survey
from autotune.device import Device
from autotune.errors import AutotuneError, CacheWarning, NoGpu, UnknownDevice, UnknownKernel
from autotune.registry import Origin, load_family, registered, resolve
from autotune.space import Family, GpuFamily, called
from autotune.tuner import tune_family

Number = TypeVar("Number", int, float)
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
CPU, CUDA = "cpu", "cuda"
OWN = {"command", "kernel", "budget", "top", "threads", "json", "quiet", "jobs", "timeout"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", CacheWarning)
            warnings.showwarning = _warn
            return _dispatch(words)
    except (UnknownKernel, UnknownDevice) as error:
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
    if len(words) > 1 and words[0] in ("run", "compile") and not words[1].startswith("-"):
        reference = resolve(words[1])
        family = load_family(reference)
    options = _parser(family, words).parse_args(words)
    if options.command == "run":
        return _run(reference, options)
    if options.command == "compile":
        return _compile(reference, options)
    if options.command == "show":
        return _show(options.kernel)
    return _devices()


def _gpu_wanted(words: Sequence[str]) -> bool:
    """Whether a kernel's options are those of its GPU problem: the two may differ."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--device", default=CPU)
    return words[:1] == ["compile"] or first.parse_known_args(words)[0].device != CPU


def _parser(family: Family | None, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; a kernel's options depend on it, so it comes first, and on `--device`."""
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
    run.add_argument(
        "--device", choices=(CPU, CUDA), default=CPU, help="what to tune for (default: cpu)"
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    run.add_argument("--quiet", action="store_true", help="print errors only")
    compile_ = _add_compile(commands)
    if family is not None:
        command = compile_ if words[0] == "compile" else run
        problem = command.add_argument_group(f"the problem ({family.name})")
        if not _gpu_wanted(words):
            family.add_arguments(problem)
        elif isinstance(family, GpuFamily):
            family.add_gpu_arguments(problem)
    remembered = commands.add_parser("show", help="what is remembered")
    remembered.add_argument("kernel", nargs="?", metavar="KERNEL", help="only this kernel's")
    commands.add_parser("devices", help="this machine's limits, and the known GPUs")
    return parser


def _add_compile(commands: Any) -> argparse.ArgumentParser:
    compile_: argparse.ArgumentParser = commands.add_parser(
        "compile",
        help="compile a GPU kernel's candidates without a GPU",
        description="Compile the best candidates for a GPU that need not be there, and print "
        "what the cost model predicted beside what the compiler made. The kernel's own options: "
        "autotune compile KERNEL --help.",
    )
    compile_.add_argument("kernel", metavar="KERNEL", help="a registered name, or module:attribute")
    compile_.add_argument(
        "--device", required=True, metavar="NAME", help="a GPU that `autotune devices` lists"
    )
    compile_.add_argument(
        "--top",
        type=_positive(int),
        default=6,
        metavar="K",
        help="candidates, the cheapest by estimate, and one of every other schedule (default: 6)",
    )
    compile_.add_argument(
        "--jobs", type=_positive(int), metavar="N", help="compilers at once (default: the cores)"
    )
    compile_.add_argument(
        "--timeout", type=_positive(float), default=LIMIT_SECONDS, metavar="SECONDS",
        help=f"for one compilation, which is killed then (default: {LIMIT_SECONDS:.0f})",
    )  # fmt: skip
    compile_.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    return compile_


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    """An argparse type: a finite number above zero."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse prints it
    return parse


def _compile(reference: str, options: argparse.Namespace) -> int:
    device = Device.named(options.device)
    problem = {name: value for name, value in vars(options).items() if name not in OWN}
    origin = Origin(reference, problem)
    try:
        problems = origin.rivals()
    except ValueError as error:  # sizes that make no sense
        return _complain(str(error), USAGE)
    out = show.console()
    found: list[dict[str, Any]] = []
    with compilers(origin, options.jobs or Device.current().cores, options.timeout) as run:
        for rivals in problems:
            unfit = conflicts(rivals, device)
            for of, why in unfit.items():
                name, reason = rivals[of].name, str(why)
                show_compiled.no_configuration(out, name, device, reason)
                found.append({"name": name, "reason": reason, "attempts": []})
            fit = {of: tunable for of, tunable in rivals.items() if of not in unfit}
            if fit:
                attempts = survey(run, origin, fit, device, options.top)
                show_compiled.attempts(out, called(fit), device, attempts)
                facts = [{"name": fit[a.candidate.of].name, **a.facts()} for a in attempts]
                found.append({"name": called(fit), "attempts": facts})
    if any(entry["attempts"] for entry in found):
        show_compiled.legend(out)
    report = {"kernel": options.kernel, "options": origin.options, "tunables": found}
    return _write(options.json, report) if options.json else DONE


def _write(path: Path, report: dict[str, Any]) -> int:
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        return _complain(f"the report is not written: {error}", FAILED)
    return DONE


def _run(reference: str, options: argparse.Namespace) -> int:
    problem = {name: value for name, value in vars(options).items() if name not in OWN}
    device: Device
    try:
        if options.device == CUDA:
            device = Device.current("cuda")
            origin = Origin(reference, problem)
            origin.gpu_tunables()
        else:
            device = Device.current()
            del problem["device"]
            origin = Origin(reference, {**problem, "threads": options.threads or device.cores})
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
    rows = [] if interrupted or device.kind == CUDA else list(compare(origin, results))
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
        if _write(options.json, report) != DONE:
            return FAILED
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
