"""The suite `compile-cuda`: the CUDA kernels that the model chooses, compiled by NVRTC, no GPU.

For each cell, head dimension, direction and architecture: the first choice, and where the compiler
spills in it, a second one that leaves so many registers more; then the largest head that fits.
Registers are held to what was predicted where a kernel comes near the most that it can have.
"""

from __future__ import annotations

import datetime
import multiprocessing
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from autotune.compiler_report import Report, report
from autotune.gpu import Gpu, named
from autotune.resources import most_registers
from autotune.show import progress
from autotune.space import Compiled
from bench import files
from bench.suites import Suite
from flashrnn.cli import find_cell
from flashrnn.dims import Dims
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_compile import compile_for, compile_source
from flashrnn.tiling import cuda_choice as tiling
from flashrnn.tiling.cuda import ROWS, CudaProblem
from flashrnn.tiling.cuda_latency import Tiling, step_seconds

NAME = "compile-cuda"
CELLS = ("lstm", "gru", "elman", "slstm")
HEAD_DIMS = (64, 128, 256, 512, 1024)
DIRECTIONS = (TRAINING, BACKWARD)
DEVICES = ("a100-80-sxm", "rtx-3090", "rtx-4090", "h100-sxm", "b200", "rtx-5090")
# The head dimension of a row that asks for the largest that fits.
LARGEST = 0
# Registers are predicted to this part where a kernel comes within this part of the cap.
NEAR = 0.1


@dataclass(frozen=True)
class Try:
    """One tiling, compiled. Per thread: registers and spilled bytes.

    cap: the most registers that a thread of such a block can have. in_fewer: whether the compiler
    spills nothing with NEAR more than predicted; it takes what it likes of registers that are free.
    """

    predicted: int
    registers: int
    spilled: int
    cap: int
    in_fewer: bool

    @property
    def needed(self) -> int:
        """What the compiler took, and what it had to spill for want of more."""
        return self.registers + -(-self.spilled // 4)

    @property
    def near(self) -> bool:
        """Whether it comes within NEAR of the cap, by the prediction or for the compiler."""
        needed = self.predicted if self.in_fewer else max(self.predicted, self.needed)
        return needed >= (1 - NEAR) * self.cap

    @property
    def error(self) -> float:
        """Of the prediction: positive where it is too high."""
        return self.predicted / self.needed - 1


@dataclass(frozen=True)
class Row:
    """One kernel. Shared memory per block.

    tries: what was compiled, the last of them kept; none, and "" in `schedule`, where no head fits.
    """

    cell: str
    direction: str
    dtype: str
    device: str
    sm: int
    head_dim: int
    largest: bool
    schedule: str = ""
    tiling: dict[str, int] | None = None
    step_microseconds: float = 0.0  # predicted
    shared_bytes: int = 0
    tries: tuple[Try, ...] = ()
    spilled_in_loop: int = 0
    products_as_tiled: bool = True

    @property
    def spilled(self) -> int:
        """Bytes per thread, in the tiling that was kept."""
        return self.tries[-1].spilled


def compiled(case: tuple[str, str, str, str, int]) -> Row:
    """Choose, compile, and choose again where the compiler spilled."""
    cell, direction, dtype, device, head_dim = case
    gpu = named(device)
    problem = CudaProblem(
        lower(find_cell(cell)), direction, GPU_BY_NAME[dtype],
        Dims(ROWS, 1024, 1, head_dim or 16),
    )  # fmt: skip
    if head_dim == LARGEST:
        head_dim = max(tiling.largest(problem, gpu, s) for s in tiling.SCHEDULES)
        problem = CudaProblem(
            problem.program, direction, problem.dtype, Dims(ROWS, 1024, 1, head_dim)
        )
    row = Row(cell, direction, dtype, device, gpu.sm, head_dim, case[4] == LARGEST)
    if not any(tiling.fits(problem, gpu, s) for s in tiling.SCHEDULES):
        return row
    chosen = tiling.choose(problem, gpu)
    made, first = tried(problem, chosen, gpu)
    tries = [first]
    second = tiling.second(problem, chosen, gpu, first.spilled) if made.spilled else None
    if second is not None:
        chosen = second
        made, last = tried(problem, chosen, gpu)
        tries.append(last)
    return replace(row, tries=tuple(tries), **_facts(problem, chosen, gpu, made))


def tried(problem: CudaProblem, chosen: Tiling, gpu: Gpu) -> tuple[Report, Try]:
    """A tiling compiled; where the compiler took many more registers, whether it had to."""
    needed = tiling.predict(problem, chosen)
    made = report(compile_for(problem, chosen, gpu.sm))
    cap, fewer = most_registers(gpu.architecture, needed.threads), needed.registers
    fewer = int(fewer / (1 - NEAR))
    in_fewer = made.registers <= fewer
    if not in_fewer and made.registers >= (1 - NEAR) * cap:
        in_fewer = not report(_bounded(problem, chosen, gpu.sm, fewer)).spilled
    in_fewer = in_fewer and not made.spilled
    return made, Try(needed.registers, made.registers, made.spill_store_bytes, cap, in_fewer)


def _bounded(problem: CudaProblem, chosen: Tiling, sm: int, registers: int) -> Compiled:
    """The kernel compiled with so many registers per thread."""
    entry, bounded = "FLASHRNN_KERNEL(warps * lanes)", f"__maxnreg__({registers})"
    source = tiling.source_of(problem, chosen)
    source = source.replace(entry, f'extern "C" __global__ void {bounded}')
    return Compiled(compile_source(source, sm), 0, 0, 0.0)


def _facts(problem: CudaProblem, chosen: Tiling, gpu: Gpu, made: Report) -> dict[str, Any]:
    step = made.step
    tensor = step.code.classes["tensor"] if step else 0
    local = step.code.bytes("local load") + step.code.bytes("local store") if step else 0
    return {
        "schedule": tiling.schedule_of(chosen),
        "tiling": chosen.as_config(),
        "step_microseconds": 1e6 * step_seconds(problem, chosen, gpu),
        "shared_bytes": tiling.predict(problem, chosen).shared_bytes,
        "spilled_in_loop": local,
        "products_as_tiled": tensor == tiling.products_per_step(problem, chosen),
    }


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """What the suite is for, of the rows that ask for a given head dimension."""
    kernels = [r for r in rows if r.schedule and not r.largest]
    yield "kernels", str(len(kernels))
    yield "heads that fit no schedule", str(sum(not r.schedule for r in rows))
    if not kernels:
        return
    first = [not r.tries[0].spilled for r in kernels]
    last = [not r.spilled for r in kernels]
    yield "no spill at first choice", f"{100 * sum(first) / len(first):.1f} %"
    yield "no spill after one more choice", f"{100 * sum(last) / len(last):.1f} %"
    yield "local memory in the time loop", f"{sum(r.spilled_in_loop > 0 for r in kernels)} kernels"
    same = all(r.products_as_tiled for r in kernels)
    yield "tensor-core instructions as tiled", "in all" if same else "not in all"
    errors = [abs(t.error) for r in kernels for t in r.tries if t.near]
    if errors:
        told = f"{100 * median(errors):.1f} % median, {100 * max(errors):.1f} % worst"
        yield f"registers, of {len(errors)} tilings within 10 % of the cap", told


_CAP = """\
The cap is the most registers that a thread of such a block can have. A tiling comes near it by
what was predicted or by what the compiler took, one register more for each 4 bytes that it
spilled; first choices that spilled are among them. One that took more than was predicted counts
where it has to: it spills with a ninth more than predicted. Others took what was free."""


def page(found: dict[str, Any], rows: Sequence[Row]) -> str:
    """Markdown: the figures, the largest heads, and every kernel."""
    lines = ["# CUDA kernels: predicted and compiled", ""]
    lines += [f"Written by `flashrnn-bench run --suite {NAME}`, {found['date']}, NVRTC"]
    lines[-1] += f" {found['nvrtc']}, without a GPU; microseconds are the latency model's."
    lines += ["", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in figures(rows)), "", _CAP, ""]
    lines += ["## The largest head", "", "Multiples of 16; spilled bytes in brackets.", ""]
    biggest = [r for r in rows if r.largest]
    devices = list(dict.fromkeys(r.device for r in biggest))
    lines += [f"| cell | direction | {' | '.join(devices)} |", "|---|---|" + "---|" * len(devices)]
    for cell, direction in dict.fromkeys((r.cell, r.direction) for r in biggest):
        own = {r.device: r for r in biggest if (r.cell, r.direction) == (cell, direction)}
        cells = (
            f"{r.head_dim}, {r.schedule}" + (f" ({r.spilled})" if r.spilled else "")
            for r in (own[d] for d in devices)
        )
        lines.append(f"| {cell} | {direction} | {' | '.join(cells)} |")
    lines += ["", "## Kernels", "", "| cell | direction | GPU | D | schedule | µs a step |"]
    lines[-1] += " registers of each try: predicted, compiled | shared bytes | spilled bytes |"
    lines.append("|---|---|---|---|---|---|---|---|---|")
    lines += [
        f"| {r.cell} | {r.direction} | {r.device} | {r.head_dim} | {r.schedule or 'none'} | "
        f"{r.step_microseconds:.1f} | "
        + "; ".join(f"{t.predicted}, {t.registers}" for t in r.tries)
        + f" | {r.shared_bytes:,} | {', '.join(str(t.spilled) for t in r.tries)} |"
        for r in rows
        if not r.largest
    ]
    return "\n".join(lines) + "\n"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="CELL")
    parser.add_argument("--head-dims", nargs="+", type=int, default=HEAD_DIMS, metavar="D")
    parser.add_argument("--dtypes", nargs="+", default=("bfloat16",), metavar="DTYPE")
    parser.add_argument("--devices", nargs="+", default=DEVICES, metavar="NAME")
    parser.add_argument("--jobs", type=int, choices=range(1, 65), default=2, metavar="N")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write Markdown too")


def _run(options: Namespace, out: Console, output: Path) -> None:
    sizes = (*options.head_dims, LARGEST)
    cases = list(product(options.cells, DIRECTIONS, options.dtypes, options.devices, sizes))
    rows: list[Row] = []
    found = {
        "suite": NAME,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "nvrtc": version("nvidia-cuda-nvrtc"),
    }
    context = multiprocessing.get_context("spawn")
    with progress(out) as watch, ProcessPoolExecutor(options.jobs, context) as pool:
        for case, row in zip(cases, pool.map(compiled, cases), strict=True):
            rows.append(row)
            files.write(output, {**found, "rows": [asdict(r) for r in rows]})
            watch(" ".join(map(str, case)), "compile", len(rows), len(cases))
    if options.page:
        files.write_bytes(options.page, page(found, rows).encode())
    _print(out, rows)
    out.print(f"every kernel: {output}", soft_wrap=True)


def _print(out: Console, rows: Sequence[Row]) -> None:
    for what, told in figures(rows):
        out.print(f"{what}: {told}", soft_wrap=True)


def _show(out: Console, path: Path) -> None:
    data = files.read(path)
    _print(out, [Row(**{**r, "tries": tuple(Try(**t) for t in r["tries"])}) for r in data["rows"]])


COMPILE_CUDA = Suite(_add_arguments, _run, _show)
