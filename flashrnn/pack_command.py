"""flashrnn pack: choose kernels' tilings for a GPU that need not be there."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from autotune import show
from autotune.cache import cache_directory
from autotune.compiling import LIMIT_SECONDS, compilers
from autotune.device import Device
from autotune.gpu import Gpu
from flashrnn import pack_check, packs
from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.errors import OptionError
from flashrnn.packs import cells, cuda, scans
from flashrnn.packs.pack import Pack, write

CELLS = {cell.name: cell for cell in (lstm, gru, elman, slstm)}
SCAN_ATTENTION = "scan-attention"
KERNELS = (*CELLS, SCAN_ATTENTION)
BACKENDS = TRITON, CUDA = "triton", "cuda"


def add(commands: Any) -> None:
    """The subcommand."""
    pack = commands.add_parser(
        "pack",
        help="choose tilings of kernels for a GPU, and keep them",
        description="Choose tilings of Triton's and CUDA's kernels for GPUs that need not be "
        "there, over head dimensions, dtypes, directions and batches or lengths, and write a pack "
        "for each: both back ends take their tilings from there where none was tuned.",
    )
    pack.add_argument(
        "--device", nargs="+", required=True, metavar="NAME", help="of `autotune devices`, or cuda"
    )
    pack.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, metavar="NAME",
                      help=f"of {', '.join(KERNELS)} (all)")  # fmt: skip
    pack.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS, metavar="NAME",
                      help="of triton, cuda (both)")  # fmt: skip
    pack.add_argument(
        "--compile", action="store_true",
        help="compile each kernel, and choose again where it spills or does not launch",
    )  # fmt: skip
    pack.add_argument(
        "--jobs", type=positive, default=2, metavar="N", help="Triton's compilers at once (2)"
    )
    pack.add_argument("--timeout", type=float, default=LIMIT_SECONDS, metavar="SECONDS",
                      help=f"for one of Triton's compilations ({LIMIT_SECONDS:.0f})")  # fmt: skip
    pack.add_argument("--output", type=Path, metavar="DIRECTORY",
                      help="where NAME.json is written (where it is looked for: packs/ in the "
                      "cache directory)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Raises UnknownDevice, OptionError, MissingExtra, OSError."""
    asked = asked_for(options.kernels, options.backend)
    if not asked:
        raise OptionError(
            f"{', '.join(options.kernels)} has no kernels of back end cuda; triton has"
        )
    folder = options.output or cache_directory() / "packs"
    judged: dict[int, pack_check.Judged] = {}
    for gpu in [Device.named(name) for name in options.device]:
        if options.compile:
            pack = _compiled(asked, gpu, judged.setdefault(gpu.sm, {}), options)
        else:
            pack = pack_check.by_model(asked, gpu)
        path = folder / f"{gpu.key}.json"
        write(pack, path)
        for section in pack.sections.values():
            print(f"{path}: {len(section.choices)} kernels, chosen by the {section.chosen_by}")


def asked_for(
    kernels: Collection[str] = KERNELS, backends: Collection[str] = BACKENDS
) -> pack_check.Asked:
    """The problems of families that are called so, on back ends."""
    own = [cell for name, cell in CELLS.items() if name in kernels]
    asked: dict[str, Sequence[Any]] = {}
    if own and TRITON in backends:
        asked[packs.CELLS.name] = cells.problems(own)
    if SCAN_ATTENTION in kernels and TRITON in backends:
        asked[packs.SCANS.name] = scans.problems()
    if own and CUDA in backends:
        asked[packs.CUDA.name] = cuda.problems(own)
    return asked


def _compiled(
    asked: pack_check.Asked, gpu: Gpu, judged: pack_check.Judged, options: argparse.Namespace
) -> Pack:
    out = show.console()
    with ExitStack() as stack:
        watch = stack.enter_context(show.progress(out))
        first, compile_ = pack_check.first_of(asked, gpu), None
        if first is not None:
            compile_ = stack.enter_context(compilers(first, options.jobs, options.timeout))

        def told(kernel: pack_check.Kernel, fault: str, done: int, total: int) -> None:
            watch(gpu.key, "compile", done, total)
            if fault:
                kind, problem, tiling = kernel
                out.print(f"left out: {kind.key_of(problem)}, {tiling}: {fault}", soft_wrap=True)

        faults = pack_check.compiling(compile_, gpu)
        return pack_check.by_report(asked, gpu, judged, faults, told)


def positive(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value
