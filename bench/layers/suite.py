"""The suites `quick` and `cpu`: their options, and what the command line calls."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from autotune.show import progress
from bench import shapes
from bench.layers import page, results, show
from bench.layers.plan import Plan, every_subject, subject, subjects_named
from bench.layers.problem import FIRST_LAYER, FORWARD, INNER_LAYER, KINDS, Kind
from bench.layers.run import run, tune
from bench.machine import processors
from bench.peers import PEERS
from bench.shapes import Shape
from bench.suites import Suite

Number = TypeVar("Number", int, float)
ALL = "all"
SHORT = {"forward": FORWARD, "weights": FIRST_LAYER, "backward": INNER_LAYER}


def quick_plan() -> Plan:
    """An LSTM beside torch.nn.LSTM and a plain loop, one thread."""
    return Plan(
        "quick", (subject("lstm", 1),), shapes.QUICK, tuple(KINDS.values()), (1,), 3.0, 5,
        ("nn", "loop"), limits=False,
    )  # fmt: skip


def cpu_plan() -> Plan:
    """Every cell, shape and installed peer, on one thread and on all."""
    threads = tuple(dict.fromkeys((1, processors())))
    return Plan("cpu", every_subject(), shapes.CPU, (FORWARD, INNER_LAYER), threads, 2.0, 3)


@dataclass(frozen=True)
class _Command:
    """The functions of a suite with this plan, which options change."""

    plan: Callable[[], Plan]

    def add_arguments(self, parser: ArgumentParser) -> None:
        plan = self.plan()
        cells = " ".join(s.label.replace(", ", ":").removesuffix(" heads") for s in plan.subjects)
        parser.add_argument("--cells", nargs="+", metavar="CELL[:HEADS]", help=f"default: {cells}")
        parser.add_argument(
            "--shapes", nargs="+", metavar="BxTxD",
            help=f"default: {' '.join(map(str, plan.shapes))}",
        )  # fmt: skip
        parser.add_argument(
            "--kinds", nargs="+", choices=SHORT,
            help="forward; weights: their gradients too; backward: those of x too",
        )  # fmt: skip
        named = " ".join(plan.peers or PEERS)
        parser.add_argument(
            "--peers", nargs="+", metavar="PEER", help=f"of {', '.join(PEERS)} (default: {named}"
            + (")" if plan.peers else ", where installed)"),
        )  # fmt: skip
        parser.add_argument(
            "--threads", nargs="+", type=_threads, metavar="N",
            help=f"for everyone, or {ALL} (default: {' '.join(map(str, plan.threads))})",
        )  # fmt: skip
        parser.add_argument(
            "--seconds", type=_positive(float), default=plan.seconds, metavar="S",
            help=f"of samples per case (default: {plan.seconds:g})",
        )  # fmt: skip
        parser.add_argument(
            "--minutes", type=_positive(float), metavar="M",
            help="begin no further case after so many (default: no end)",
        )  # fmt: skip
        parser.add_argument(
            "--tune", type=_positive(float), metavar="SECONDS",
            help="tune the kernels of each problem first, and remember the result",
        )  # fmt: skip

    def run(self, options: Namespace, out: Console, output: Path) -> None:
        plan = chosen(self.plan(), options)
        saved: list[int] = []

        def save(report: results.Report) -> None:
            results.write(report, output)
            saved.append(len(report.rows))

        with progress(out) as watch:
            if options.tune:
                for dims, threads, result in tune(plan, seconds=options.tune, watch=watch):
                    show.tuned(out, dims, threads, result)
            try:
                found = run(
                    plan,
                    step=lambda case, done, total: watch(case, "time", done, total),
                    save=save,
                )
            except KeyboardInterrupt:
                if saved:
                    told = f"{saved[-1]} of {plan.cases} cases were measured: {output}"
                    out.print(told, soft_wrap=True)
                raise
        show.report(out, found)
        out.print(f"every sample: {output}", soft_wrap=True)


def chosen(plan: Plan, options: Namespace) -> Plan:
    """The plan with what the options name. Raises UnknownChoice."""
    plan = replace(plan, seconds=options.seconds, minutes=options.minutes)
    if options.shapes:
        plan = replace(plan, shapes=tuple(Shape.parse(text) for text in options.shapes))
    if options.cells:
        plan = replace(plan, subjects=subjects_named(options.cells, plan.shapes))
    else:
        fitting = tuple(
            s for s in plan.subjects if all(shape.D % s.heads == 0 for shape in plan.shapes)
        )
        plan = replace(plan, subjects=fitting)
    if options.kinds:
        kinds: tuple[Kind, ...] = tuple(SHORT[name] for name in options.kinds)
        plan = replace(plan, kinds=kinds)
    if options.peers:
        plan = replace(plan, peers=tuple(options.peers))
    if options.threads:
        plan = replace(plan, threads=tuple(dict.fromkeys(options.threads)))
    return plan


def _threads(text: str) -> int:
    return processors() if text == ALL else _positive(int)(text)


_threads.__name__ = f"positive number or {ALL!r}"  # argparse prints it


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    """An argparse type: a finite number above zero."""

    def parse(text: str) -> Number:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def _show(out: Console, path: Path) -> None:
    show.report(out, results.read(path))


def _report(path: Path, directory: Path) -> list[Path]:
    return page.write(results.read(path), directory)


def _suite(plan: Callable[[], Plan]) -> Suite:
    command = _Command(plan)
    return Suite(command.add_arguments, command.run, _show, _report)


QUICK, CPU = _suite(quick_plan), _suite(cpu_plan)
