"""The suite's results as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.compiled.results import Results, Row, errors, largest_fused, share, too_low


def page(results: Results) -> str:
    """The whole page."""
    return "\n".join([*_head(results), *_figures(results.rows), *_largest(results.rows),
                      *_tables(results.rows), *_limits(results.rows),
                      *_wrong(results.rows)]) + "\n"  # fmt: skip


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(what, how much) over all rows."""
    fused = [row for row in rows if row.fused]
    yield "kernels", f"{len(rows)}, {len(fused)} of them fused at first choice"
    yield "right at first choice", f"{share(rows, 'right_at_first'):.1%}"
    yield "right after the compiler's report", f"{share(rows, 'right_after'):.1%}"
    for what, name in (("registers", "registers"), ("shared_bytes", "shared memory")):
        found = errors(fused, what)
        if found is not None:
            yield (
                f"{name}, fused: median error",
                f"{found.median:.1%}, worst {found.worst:+.1%} ({found.worst_case})",
            )
    yield "shared memory predicted too low", f"{len(too_low(rows))} kernels"


def _head(results: Results) -> list[str]:
    names = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    products = dict.fromkeys((row.case.sm, row.case.device) for row in results.rows)
    gpus = ", ".join(f"{device} for sm_{sm}" for sm, device in products)
    return [
        "# Tilings for GPUs, held against the compiler",
        "",
        "Written by `flashrnn-bench run --suite compile`, without a GPU. For each kernel the",
        "solver chooses a tiling by the cost model; it is right if the kernel compiles, launches",
        "and spills nothing. Where it is not, the next candidates are compiled, and where every",
        "fused one spills, those of the alternating schedule.",
        "",
        f"{results.date}, {names}. One GPU stands for each architecture: {gpus}.",
        "",
    ]


def _figures(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {what} | {told} |" for what, told in figures(rows)]
    return ["| | |", "|---|---|", *lines, ""]


def _largest(rows: Sequence[Row]) -> list[str]:
    """The largest fused head dimension."""
    sms = sorted({row.case.sm for row in rows})
    largest = largest_fused(rows)
    lines = [
        "## Largest fused head dimension",
        "",
        "Of those in the tables below. 0: none of them.",
        "",
        _line(["cell", "dtype", "kernel", *(f"sm_{sm}" for sm in sms)]),
        _line(["---"] * (3 + len(sms))),
    ]
    for cell, dtype, direction in dict.fromkeys(key[:3] for key in largest):
        reached = (largest.get((cell, dtype, direction, sm)) for sm in sms)
        lines.append(
            _line([cell, dtype, direction, *("" if d is None else str(d) for d in reached)])
        )
    return [*lines, ""]


def _tables(rows: Sequence[Row]) -> list[str]:
    """One table per dtype."""
    sms = sorted({row.case.sm for row in rows})
    lines = [
        "## Every kernel",
        "",
        "Of a fused kernel: warps, registers predicted > actual, shared KiB predicted > actual;",
        "`s` and the bytes that a thread spills at the first choice, `k.` where the k-th candidate",
        "is the first that is right. `alternating` where no fused tiling is right.",
        "",
    ]
    for dtype in dict.fromkeys(row.case.dtype for row in rows):
        lines += [
            f"### {dtype}",
            "",
            _line(["cell", "D", "kernel", *(f"sm_{sm}" for sm in sms)]),
            _line(["---"] * (3 + len(sms))),
        ]
        found = {
            (row.case.cell, row.case.head_dim, row.direction, row.case.sm): row
            for row in rows
            if row.case.dtype == dtype
        }
        for cell, head_dim, direction in sorted(
            {key[:3] for key in found}, key=lambda key: (key[0], key[2], key[1])
        ):
            cells = (found.get((cell, head_dim, direction, sm)) for sm in sms)
            lines.append(
                _line(
                    [cell, str(head_dim), direction, *(_cell(row) if row else "" for row in cells)]
                )
            )
        lines.append("")
    return lines


def _cell(row: Row) -> str:
    first, actual = row.first, row.first["actual"]
    if not row.fused:
        return "alternating" if row.right_after else "alternating, not right"
    if actual is None:
        return f"failed: {first['failure']}"
    predicted = first["predicted"]
    kib = predicted["shared_bytes"] / 1024, actual["shared_bytes"] / 1024
    words = f"{actual['threads'] // 32}w {predicted['registers']} > {actual['registers']}"
    words += f", {kib[0]:.4g} > {kib[1]:.4g}"
    spilled = actual["spill_store_bytes"] + actual["spill_load_bytes"]
    if spilled:
        words += f", s {spilled}"
    if not row.stays_fused:
        words += ", alternating"
    elif row.tried > 1:
        words += f", {row.tried}." if row.right_after else ", none right"
    return words


def _limits(rows: Sequence[Row]) -> list[str]:
    """What forces the alternating schedule."""
    forced: dict[str, list[str]] = {}
    for row in rows:
        if row.forced_by:
            forced.setdefault(row.forced_by, []).append(f"{row.case} {row.direction}")
    if not forced:
        return []
    lines = ["## What forces the alternating schedule", ""]
    for reason, cases in forced.items():
        lines.append(f"- {reason}: {len(cases)} kernels, among them {cases[0]}")
    return lines


def _wrong(rows: Sequence[Row]) -> list[str]:
    """What is left after the report: the best candidate, and what is wrong with it."""
    lines = []
    for row in rows:
        if row.right_after:
            continue
        actual, told = row.chosen["actual"], row.chosen["failure"]
        if not told:
            step = (actual["step"] or {}).get("local load", 0)
            told = (
                f"spills {actual['spill_store_bytes']} bytes and loads them with {step} "
                f"of the {sum((actual['step'] or {}).values())} instructions of a step"
            )
        lines.append(f"- {row.case} {row.direction}, best of {row.tried}: {told}")
    return ["", "## Not right after the report", "", *lines] if lines else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
