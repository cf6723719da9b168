"""flashrnn show CELL: the source of a kernel with its tiling, or the cell's graph.
flashrnn pack: tilings of Triton kernels for a GPU, kept.

Exit status: 0 done, 1 failed, e.g. a file could not be written, 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from autotune import cache
from autotune.device import Device
from autotune.errors import AutotuneError, UnknownDevice
from flashrnn import pack_command, show_cuda
from flashrnn.dims import Dims
from flashrnn.dtypes import BY_NAME, GPU_BY_NAME
from flashrnn.emit import graph
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.cuda import DIRECTIONS, INFERENCE
from flashrnn.errors import FlashRNNError, OptionError, UnknownFunctionError
from flashrnn.ir.cell import Cell, cell_names, cell_of
from flashrnn.pack_command import positive
from flashrnn.passes.lower import lower
from flashrnn.runtime import kernels
from flashrnn.show_cuda import one_of
from flashrnn.tiling import cpu
from flashrnn.tiling.cpu import CpuProblem, CpuTiling

DONE, FAILED, USAGE = 0, 1, 2
CPP_DIRECTIONS = (FORWARD, BACKWARD)
PICTURES = (".svg", ".png", ".pdf")
TERMINAL = "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "pack":
            pack_command.run(options)
        else:
            _show(options)
    except (FlashRNNError, UnknownDevice) as error:
        return _complain(str(error), USAGE)
    except (AutotuneError, OSError) as error:
        return _complain(str(error), FAILED)
    return DONE


def _show(options: argparse.Namespace) -> None:
    cell = find_cell(options.cell)
    if options.graph is None:
        print(TARGETS[options.target](cell, options), end="")
    else:
        _draw(cell, options.graph)


def find_cell(reference: str) -> Cell:
    """The cell of that name, or what module:attribute names, seen from the current directory.

    Raises UnknownFunctionError, which says what would work, and CellError from the module.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon:
        if reference not in cell_names():
            known = ", ".join(cell_names())
            raise UnknownFunctionError(
                f"no cell is called {reference!r}; known: {known}; a cell of your own is "
                "package.module:name"
            )
        return cell_of(reference)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except FlashRNNError:
        raise
    except Exception as error:  # whatever the module does
        raise UnknownFunctionError(
            f"cannot import {module_name!r} for {reference!r}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Cell):
        known = ", ".join(n for n, v in vars(module).items() if isinstance(v, Cell)) or "none"
        raise UnknownFunctionError(f"{module_name} has no cell {attribute!r}; its cells: {known}")
    return found


def _cpp(cell: Cell, options: argparse.Namespace) -> str:
    if options.device or options.sass:
        raise OptionError("--device and --sass go with --target cuda; cpp shows this machine's")
    device = Device.current()
    direction = one_of("--direction", options.direction or FORWARD, "cpp", CPP_DIRECTIONS)
    dtype = BY_NAME[one_of("--dtype", options.dtype or "float32", "cpp", tuple(BY_NAME))]
    dims = Dims(options.batch, 1, options.heads, options.head_dim)
    threads = options.threads or device.cores
    problem = CpuProblem(lower(cell), direction, dtype, dims, threads)
    config = cache.lookup(kernels.problem_key(problem), device)
    tiling = CpuTiling.of_config(config) if config else cpu.default(problem, device)
    chosen = ", ".join(f"{name} = {value}" for name, value in tiling.as_config().items())
    return (
        f"// For B={dims.B} N={dims.N} D={dims.D}, {threads} thread{'s' * (threads > 1)}, "
        f"{device.isa}: {chosen}\n// ({'tuned' if config else 'chosen by the cost model'}).\n"
        + kernels.source_of(problem, tiling, device)
    )


# Each target's source of a cell for the options.
TARGETS: dict[str, Callable[[Cell, argparse.Namespace], str]] = {
    "cpp": _cpp,
    "cuda": show_cuda.show,
}


def _draw(cell: Cell, file: str) -> None:
    both = graph.drawings(lower(cell))
    if file == TERMINAL:
        print(graph.text(both))
        return
    path = Path(file)
    if path.suffix == ".dot":
        path.write_text(graph.dot(both), encoding="utf-8")
    elif path.suffix in PICTURES:
        try:
            from flashrnn.emit.plot import plot

            plot(both, path)
        except ImportError as error:
            raise OptionError(
                f"a {path.suffix} needs matplotlib (pip install 'flashrnn-compiler[plot]'), "
                f"a .dot does not: {error}"
            ) from error
    else:
        known = ", ".join((".dot", *PICTURES))
        raise OptionError(f"--graph {file}: the name must end in one of {known}")


def _complain(message: str, status: int) -> int:
    print(f"flashrnn: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flashrnn", description="A compiler for recurrences.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="a kernel's source with its tiling, or a cell's graph")
    show.add_argument(
        "cell", metavar="CELL", help=f"{', '.join(cell_names())}, or package.module:name"
    )
    show.add_argument("--target", choices=sorted(TARGETS), default="cpp", help="(cpp)")
    show.add_argument("--head-dim", type=positive, default=64, metavar="D", help="(64)")
    show.add_argument("--batch", type=positive, default=16, metavar="B", help="(16)")
    show.add_argument("--heads", type=positive, default=1, metavar="N", help="(1)")
    show.add_argument(
        "--dtype",
        choices=sorted({*BY_NAME, *GPU_BY_NAME}),
        help=f"(cpp: float32, cuda: {show_cuda.DEFAULT_DTYPE})",
    )
    show.add_argument(
        "--direction",
        choices=sorted({*CPP_DIRECTIONS, *DIRECTIONS}),
        help="training: a forward pass that saves what the backward pass reads "
        f"(cpp: {FORWARD}, cuda: {INFERENCE})",
    )
    show.add_argument(
        "--device", metavar="GPU", help=f"cuda: a GPU of the table ({show_cuda.DEFAULT_DEVICE})"
    )
    show.add_argument("--sass", action="store_true", help="cuda: the machine code of the time loop")
    show.add_argument("--threads", type=positive, metavar="N", help="(the usable cores)")
    show.add_argument(
        "--graph",
        nargs="?",
        const=TERMINAL,
        metavar="FILE",
        help="draw the forward and backward graph instead: as text, or into FILE "
        f"({', '.join(('.dot', *PICTURES))})",
    )
    pack_command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
