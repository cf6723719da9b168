"""The suite `compile`: its options, and what the command line calls."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import product
from pathlib import Path

from rich.console import Console

from autotune.compiling import LIMIT_SECONDS, compilers
from autotune.device import Device
from autotune.show import progress
from bench import files
from bench.compiled import page, results
from bench.compiled.results import Case, Results
from bench.compiled.run import origin_of, run
from bench.errors import UnreadableReport
from bench.suites import Suite

CELLS = ("lstm", "gru", "elman", "slstm")
HEAD_DIMS = (16, 32, 64, 96, 128)
DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("training", "backward")  # inference is a part of training's forward pass
# One product for each architecture.
DEVICES = ("a100-40-sxm", "a10", "l4", "h100-sxm", "b200", "rtx-5090")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="CELL")
    parser.add_argument("--head-dims", nargs="+", type=int, default=HEAD_DIMS, metavar="D")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, metavar="DTYPE")
    parser.add_argument(
        "--devices", nargs="+", default=DEVICES, metavar="NAME",
        help=f"of `autotune devices` (default: {' '.join(DEVICES)})",
    )  # fmt: skip
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, metavar="DIRECTION")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), default=2, metavar="N", help="at once (2)"
    )
    parser.add_argument(
        "--timeout", type=float, default=LIMIT_SECONDS, metavar="SECONDS",
        help=f"for one compilation, which is killed then (default: {LIMIT_SECONDS:.0f})",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the results as Markdown too"
    )
    parser.add_argument(
        "--afresh", action="store_true", help="use nothing of an earlier run's results"
    )


def _run(options: Namespace, out: Console, output: Path) -> None:
    cases = [
        Case(cell, dtype, head_dim, device, Device.named(device).sm)
        for device, dtype, cell, head_dim in product(
            options.devices, options.dtypes, options.cells, options.head_dims
        )
    ]
    kept = None if options.afresh else _kept(output, out)

    def save(found: Results) -> None:
        results.write(found, output)
        if options.page:
            files.write_bytes(options.page, page.page(found).encode())

    with (
        progress(out) as watch,
        compilers(origin_of(cases[0]), options.jobs, options.timeout) as compile_,
    ):
        found = run(
            cases,
            options.directions,
            compile_,
            kept,
            save,
            lambda case, done, total: watch(case, "compile", done, total),
        )
    save(found)
    _print(out, found)
    out.print(f"every kernel: {output}", soft_wrap=True)


def _kept(output: Path, out: Console) -> Results | None:
    """What an earlier run wrote; nothing of a file that is not this suite's."""
    try:
        return results.read(output)
    except FileNotFoundError:
        return None
    except UnreadableReport as error:
        out.print(f"nothing is taken from an earlier run: {error}", soft_wrap=True)
        return None


def _print(out: Console, found: Results) -> None:
    for what, told in page.figures(found.rows):
        out.print(f"{what}: {told}", soft_wrap=True)


def _show(out: Console, path: Path) -> None:
    _print(out, results.read(path))


COMPILE = Suite(_add_arguments, _run, _show)
