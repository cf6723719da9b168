"""What people see: results, comparisons, memories and the machine, on a terminal or in a log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from autotune.cache import Entry
from autotune.compare import Row
from autotune.device import Cpu, Device
from autotune.gpu import Gpu, named, names
from autotune.measure import Timing
from autotune.result import Result
from autotune.tuner import Watch

LOG_WIDTH = 120  # of tables where standard output is not a terminal
LONGEST_VALUE = 16
FROM_TABLE = {
    "vector_bytes",
    "vector_registers",
    "fma_per_cycle",
    "loads_per_cycle",
    "l1_bytes_per_cycle",
    "l2_bytes_per_cycle",
    "l3_bytes_per_cycle",
    "memory_bytes_per_cycle",
}


def console(quiet: bool = False) -> Console:
    """Standard output, at a fixed width where that is no terminal."""
    plain = Console(highlight=False, markup=False, quiet=quiet)
    return (
        plain
        if plain.is_terminal
        else Console(highlight=False, markup=False, quiet=quiet, width=LOG_WIDTH)
    )


def duration(seconds: float | None) -> str:
    """Three digits and a unit: "1.23 ms"."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def spread(timing: Timing) -> str:
    return f"{duration(timing.median)} ± {100 * timing.noise / timing.median:.1f}%"


@contextmanager
def progress(out: Console) -> Iterator[Watch]:
    """A bar on a terminal, a line per stage in a log."""
    if out.quiet or not out.is_terminal:
        seen: set[tuple[str, str]] = set()

        def line(name: str, stage: str, done: int, total: int) -> None:
            if (name, stage) not in seen:
                seen.add((name, stage))
                out.print(f"{name}: {stage} ({total})", soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)

        def step(name: str, stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {stage}", completed=done, total=total)

        yield step


def result(out: Console, found: Result) -> None:
    """A paragraph on one search."""
    fates = Counter(trial.status for trial in found.trials)
    counts = ", ".join(f"{count} {status}" for status, count in fates.items())
    check = found.check
    lines = [
        ("solver", f"{found.feasible:,} feasible configurations in {found.solve_seconds:.2f} s"),
        ("tried", f"{len(found.trials)}: {counts}"),
        ("chosen", found.description + (" (the default)" if found.is_default else "")),
        *(("binds", words) for words in found.binding),
        ("check", f"{check.what} {check.error:.2g}, at most {check.bound:.2g} allowed"),
        ("time", _time(found)),
    ]
    broken = [trial for trial in found.trials if trial.reason and trial.status != "skipped"]
    lines += [(trial.status, f"{trial.description}: {trial.reason}") for trial in broken]
    if found.interrupted:
        lines.append(("note", "interrupted: the best so far is kept"))
    out.print(found.name, style="bold", soft_wrap=True)
    for label, words in lines:
        out.print(f"  {label:<10}{words}", soft_wrap=True)


def _time(found: Result) -> str:
    if found.seconds is None:
        return "not timed: no time was left"
    if found.is_default or found.default_seconds is None:
        return duration(found.seconds)
    faster = found.default_seconds / found.seconds
    default = duration(found.default_seconds)
    return f"{duration(found.seconds)}; the default takes {default}, {faster:.2f} times as long"


def comparisons(out: Console, rows: Sequence[Row]) -> None:
    """Ours beside the peer's, losses as they are."""
    table = Table("", "ours", "peer", "its time", "ratio", title="against the strongest peer")
    for row in rows:
        if row.timings is None:
            table.add_row(row.label, row.failure, row.peer, "-", "-")
        else:
            ours, theirs = row.timings
            ratio = f"{row.ratio:.2f}"
            table.add_row(row.label, spread(ours), row.peer, spread(theirs), ratio)
    out.print(table)
    out.print("ratio: its time over ours, above 1 ours is faster; ± 95% of the median")


def memories(out: Console, remembered: Sequence[Entry], device: Device) -> None:
    """What the cache holds, this machine's answers and others'."""
    table = Table("kernel", "problem", "configuration", "time", "default", "when", "machine")
    for entry in remembered:
        table.add_row(
            entry.name,
            _words(entry.problem),
            entry.description,
            duration(entry.seconds),
            duration(entry.default_seconds),
            entry.when,
            "this" if entry.device == device.fingerprint else entry.device,
        )
    out.print(table)


def _words(problem: Mapping[str, int | str]) -> str:
    """The problem in a few words; a digest is cut, it tells people nothing."""
    return " ".join(
        f"{name}={value if len(str(value)) <= LONGEST_VALUE else str(value)[:8] + '...'}"
        for name, value in problem.items()
    )


def machine(out: Console, device: Cpu) -> None:
    """The device's row, and where each value comes from."""
    table = Table("limit", "value", "known from", title=device.name)
    for field in fields(device):
        if field.name in ("name", "processor", "assumed"):
            continue
        if field.name in device.assumed:
            source = "assumed: the machine does not say"
        else:
            source = "table" if field.name in FROM_TABLE else "probe"
        table.add_row(field.name, f"{getattr(device, field.name)}", source)
    out.print(table)
    out.print(f"instruction sets: {', '.join(device.isas)}", soft_wrap=True)
    out.print(f"fingerprint: {device.fingerprint}", soft_wrap=True)


def gpus(out: Console, present: Gpu | str) -> None:
    """The GPUs that kernels can be compiled for, and this machine's or why there is none."""
    if isinstance(present, Gpu):
        out.print(f"GPU: {present.name}, probed: {', '.join(present.probed)}", soft_wrap=True)
    else:
        out.print(f"GPU: none ({present})", soft_wrap=True)
    table = Table(
        "name", "sm", "SMs", "MHz", "TFLOPS", "GB/s", "L2 MiB", "KiB/block", "doubts",
        title="GPUs that --device knows",
    )  # fmt: skip
    for gpu in ([present] if isinstance(present, Gpu) else []) + [named(name) for name in names()]:
        table.add_row(
            "cuda" if gpu is present else gpu.key,
            f"{gpu.sm}",
            f"{gpu.sms}",
            f"{gpu.clock_mhz:.0f}",
            f"{gpu.tflops:.0f}" if gpu.tflops else "-",
            f"{gpu.memory_bytes_per_second / 1e9:.0f}",
            f"{gpu.l2_bytes >> 20}",
            f"{gpu.architecture.shared_per_block >> 10}",
            gpu.doubt,
        )
    out.print(table)
    out.print("TFLOPS: dense fp16 or bf16 on the tensor cores; KiB/block: shared memory, opted in")
