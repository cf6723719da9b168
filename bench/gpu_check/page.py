"""The table of a check: one Markdown page, from what is in the JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.show import duration

Facts = Mapping[str, Any]
OURS = "flashrnn"
_PARTS = ("kernels", "cuda_kernels", "layers", "sanitizer")


def page(found: Facts) -> str:
    """The whole page."""
    gpu = found["gpu"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [
        f"# {gpu['name']} (sm_{gpu['sm']}, {gpu['sms']} SMs)",
        f"{found['date']}, {versions}.",
        *_correctness(found["correctness"]),
        *_sanitizer(found["sanitizer"]),
        *_kernels("Triton kernels", found["kernels"]),
        *_kernels("CUDA kernels", found["cuda_kernels"]),
        "## Layers",
        _table(
            ["layer", "dtype", "B×T×D", "call", OURS, "torch.nn", "its time / ours", "plain loop",
             "its time / ours"],
            [_layer(row) for row in found["layers"]],
        ),
        *_problems(found["layers"]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def faults(found: Facts) -> int:
    """How many things are not as they should be."""
    tests = found["correctness"]
    wrong: int = len(tests["failed"]) + tests["skipped"] + bool(tests["problem"])
    rows = (row for part in _PARTS for row in found[part])
    return wrong + sum(bool(row["problem"]) for row in rows)


def _correctness(tests: Facts) -> Iterator[str]:
    yield "## Correctness"
    if tests["problem"]:
        yield f"Not run: {tests['problem']}."
        return
    failed = tests["failed"]
    yield f"{tests['passed']} passed, {len(failed)} failed, {tests['skipped']} skipped."
    if failed:
        yield "\n".join(f"- {name}" for name in failed)


def _sanitizer(outcomes: Sequence[Facts]) -> Iterator[str]:
    yield "## compute-sanitizer over the CUDA back end"
    if not outcomes:
        yield "It is not on PATH."
        return
    yield "\n".join(f"- {one['tool']}: {one['problem'] or one['told']}" for one in outcomes)


def _kernels(what: str, rows: Sequence[Facts]) -> Iterator[str]:
    yield f"## {what}: predicted > measured"
    yield from _figures(rows)
    head = ["kernel", "dtype", "B×T×N×D", "tiling", "registers", "shared bytes", "spills",
            "blocks per SM", "time"]  # fmt: skip
    yield _table(head, [_kernel(row) for row in rows])
    yield from _problems(rows)


def _figures(rows: Sequence[Facts]) -> Iterator[str]:
    """The prediction's errors."""
    compiled = [row for row in rows if row["actual"] is not None]
    timed = [row for row in rows if row["seconds"] is not None]
    if compiled:
        errors = [
            abs(row["predicted"]["registers"] / row["actual"]["registers"] - 1) for row in compiled
        ]
        low = sum(row["predicted"]["shared_bytes"] < row["actual"]["shared_bytes"]
                  for row in compiled)  # fmt: skip
        yield (
            f"Registers: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}. "
            f"Shared memory: predicted too low for {low} kernels."
        )
    if timed:
        ratios = [row["seconds"] / row["predicted_seconds"] for row in timed]
        told = (
            f"Time: measured / predicted from {min(ratios):.2g} to {max(ratios):.2g}, "
            f"median {statistics.median(ratios):.2g}"
        )
        if len(timed) > 2:
            predicted = [row["predicted_seconds"] for row in timed]
            measured = [row["seconds"] for row in timed]
            told += f"; rank correlation {rank_correlation(predicted, measured):.2f}"
        yield told + "."


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, 0 where one side is constant."""
    a, b = _ranks(x), _ranks(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    """From 0; equals share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def _kernel(row: Facts) -> list[str]:
    predicted, actual, dims = row["predicted"], row["actual"], row["dims"]
    size = "×".join(str(dims[letter]) for letter in ("B", "T", "N", "D"))
    what = [row["name"], row["dtype"], size, row["tiling"]]
    if actual is None:
        unknown = [predicted["registers"], f"{predicted['shared_bytes']:,}"]
        unknown = [f"{number} > ?" for number in unknown]
        return [*what, *unknown, "", "", f"{duration(row['predicted_seconds'])} > ?"]
    spilled = actual["spill_store_bytes"] + actual["spill_load_bytes"]
    time = "?" if row["seconds"] is None else _time(row["seconds"], row["noise"])
    return [
        *what,
        f"{predicted['registers']} > {actual['registers']}",
        f"{predicted['shared_bytes']:,} > {actual['shared_bytes']:,}",
        f"{spilled}",
        f"{row['blocks_per_sm']}",
        f"{duration(row['predicted_seconds'])} > {time}",
    ]


def _layer(row: Facts) -> list[str]:
    cells = [row["name"], row["dtype"], row["shape"], row["kind"]]
    ours = row["seconds"].get(OURS)
    cells.append("?" if ours is None else _time(ours, row["noise"][OURS]))
    for wanted in ("torch.nn", "eager loop"):
        label = next((name for name in row["seconds"] if name.startswith(wanted)), None)
        if label is None or ours is None:
            cells += ["", ""]
        else:
            seconds = row["seconds"][label]
            cells += [_time(seconds, row["noise"][label]), f"{seconds / ours:.2f}"]
    return cells


def _time(seconds: float, noise: float) -> str:
    """With a caution where the median is uncertain by more than 5 %."""
    return duration(seconds) + (" (noisy)" if noise > 0.05 * seconds else "")


def _problems(rows: Sequence[Facts]) -> Iterator[str]:
    told = [f"- {row['name']}, {row['dtype']}: {row['problem']}" for row in rows if row["problem"]]
    if told:
        yield "Wrong:"
        yield "\n".join(told)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
