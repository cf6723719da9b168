"""What people see of candidates that were compiled for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from autotune.compiling import Attempt
from autotune.gpu import Gpu
from autotune.show import duration


def attempts(out: Console, name: str, device: Gpu, ranked: Sequence[Attempt]) -> None:
    """Predicted beside actual, best first."""
    table = Table(title=f"{name} on {device.name} (sm_{device.sm})")
    for column in ("rank", "configuration"):
        table.add_column(column)
    for column in ("registers", "shared bytes", "blocks", "spills", "step", "tensor", "estimate"):
        table.add_column(column, justify="right")
    for at, attempt in enumerate(ranked, 1):
        table.add_row(*_row(at, attempt))
    out.print(table)
    for attempt in ranked:
        if attempt.failure:
            out.print(f"  out: {attempt.description}: {attempt.failure}", soft_wrap=True)


def legend(out: Console) -> None:
    """What the columns mean."""
    out.print(
        "rank: after the report (before it); registers and shared bytes: predicted > actual; "
        "blocks: per SM; spills: bytes per thread stored / loaded; step: instructions of one "
        "iteration of the main loop, of them on tensor cores",
        soft_wrap=True,
    )


def _row(at: int, attempt: Attempt) -> list[str]:
    predicted, report = attempt.prediction, attempt.report
    rank = f"{'-' if attempt.out else at} ({attempt.first + 1})"
    if report is None:
        return [rank, attempt.description, f"{predicted.registers} > ?",
                f"{predicted.shared_bytes:,} > ?", "-", "-", "-", "-", "out"]  # fmt: skip
    step = report.step.code.classes if report.step else None
    spills = f"{report.spill_store_bytes} / {report.spill_load_bytes}" if report.spilled else "none"
    return [
        rank,
        attempt.description,
        f"{predicted.registers} > {report.registers}",
        f"{predicted.shared_bytes:,} > {report.shared_bytes:,}",
        f"{attempt.blocks}",
        spills,
        f"{sum(step.values())}" if step else "-",
        f"{step['tensor']}" if step else "-",
        "out" if attempt.out else duration(attempt.seconds),
    ]


def no_configuration(out: Console, name: str, device: Gpu, reason: str) -> None:
    """That the solver found nothing, and what forbids it."""
    out.print(f"{name} on {device.name} (sm_{device.sm}): no configuration fits", style="bold")
    out.print(f"  {reason}", soft_wrap=True)
