"""Suite `modules`: flashrnn.nn's modules beside torch.nn's of the same weights.

Whole modules as programs call them, layers, directions and all: forward as at inference, and
forward and backward with the gradients of every parameter and of the input. Ours is verified
against torch.nn in float64 before anything is timed; both are timed in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from autotune.measure import Timing, interleave
from autotune.show import progress
from bench import files, shapes
from bench.errors import Disagreement
from bench.machine import Machine, confined
from bench.suites import Suite
from flashrnn import nn
from flashrnn.tolerance import Comparison, compare, worst

Tensor = torch.Tensor
Row = dict[str, Any]

MODULES = ("LSTM", "GRU", "RNN")
FORWARD, TRAINING = "forward", "forward+backward, weights and x"
# What this library set out to reach on one thread: torch.nn's time over ours, training.
GOALS = {"LSTM": 1.3, "GRU": 2.0}
SAMPLE_SECONDS = 5e-3
OURS, THEIRS = "flashrnn.nn", "torch.nn"


class Problem:
    """Both modules with the same weights, an input and the cotangent of the output."""

    def __init__(self, name: str, stack: shapes.Stack) -> None:
        torch.manual_seed(0)
        self.name, self.stack = name, stack
        self.theirs: torch.nn.Module = getattr(torch.nn, name)(
            stack.input_size,
            stack.hidden_size,
            stack.num_layers,
            bidirectional=stack.bidirectional,
        )
        self.ours: torch.nn.Module = nn.from_torch(self.theirs)
        self.x = torch.randn(stack.T, stack.B, stack.input_size, requires_grad=True)
        width = stack.hidden_size * (1 + stack.bidirectional)
        self.d_output = torch.randn(stack.T, stack.B, width)

    def call(self, module: torch.nn.Module, kind: str) -> tuple[Tensor, ...]:
        """The output, and for training the gradients of x and of the parameters."""
        if kind == FORWARD:
            with torch.no_grad():
                return (module(self.x)[0],)
        output = module(self.x)[0]
        leaves = [self.x, *module.parameters()]
        return (output.detach(), *torch.autograd.grad(output, leaves, self.d_output))

    def verify(self) -> Comparison:
        """The result of ours that is farthest from torch.nn in float64. Raises Disagreement."""
        names = ["output", "d_x", *(f"d_{name}" for name, _ in self.theirs.named_parameters())]
        got, eager = (self.call(module, TRAINING) for module in (self.ours, self.theirs))
        wide = Problem(self.name, self.stack)
        wide.theirs.double()
        wide.x, wide.d_output = self.x.detach().double().requires_grad_(), self.d_output.double()
        exact = wide.call(wide.theirs, TRAINING)
        found = worst([*map(compare, names, got, exact, eager)])
        if not found.ok:
            raise Disagreement(f"{self.name} {self.stack}", OURS, found)
        return found


def rows(modules: tuple[str, ...], seconds: float, threads: int) -> Iterator[Row]:
    """Every case, one at a time. Raises Disagreement."""
    for stack, name in product((shapes.MODULES, shapes.SMALLEST_MODULE), modules):
        problem = Problem(name, stack)
        compared = problem.verify()  # which also compiles the kernels
        for kind in (FORWARD, TRAINING):
            sides = {OURS: problem.ours, THEIRS: problem.theirs}
            calls = {label: partial(problem.call, m, kind) for label, m in sides.items()}
            timings = interleave(calls, seconds=seconds, sample_seconds=SAMPLE_SECONDS)
            yield {
                "module": name, "kind": kind, "threads": threads, "stack": asdict(stack),
                "error": asdict(compared), "goal": _goal(name, stack, kind, threads),
                "samples": {label: list(t.samples) for label, t in timings.items()},
            }  # fmt: skip


def _goal(name: str, stack: shapes.Stack, kind: str, threads: int) -> float | None:
    large = stack == shapes.MODULES
    return GOALS.get(name) if large and kind == TRAINING and threads == 1 else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the suite."""
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--threads", type=int, default=1, help="for everyone (1)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of samples per case (5)")


def run(options: argparse.Namespace, out: Console, file: Path) -> None:
    """Run, keep the file whole after each case, and print the table."""
    machine, found = asdict(Machine.current()), []
    total = 4 * len(options.modules)
    with confined(options.threads), progress(out) as watch:
        watch(f"{options.modules[0]}: verify", "time", 0, total)
        for row in rows(tuple(options.modules), options.seconds, options.threads):
            found.append(row)
            files.write(file, {"suite": "modules", "machine": machine, "rows": found})
            watch(f"{row['module']} {row['kind']}", "time", len(found), total)
    show(out, file)


def show(out: Console, file: Path) -> None:
    """Print a file that `run` wrote."""
    rows_of_stack: dict[shapes.Stack, list[Row]] = {}
    for row in files.read(file)["rows"]:
        rows_of_stack.setdefault(shapes.Stack(**row["stack"]), []).append(row)
    for stack, rows in rows_of_stack.items():
        out.print(_table(stack, rows))


def _table(stack: shapes.Stack, rows: list[Row]) -> Table:
    table = Table(title=f"{stack}, threads: {rows[0]['threads']}", title_justify="left")
    table.add_column("module")
    table.add_column("call")
    for label in (OURS, THEIRS):
        table.add_column(f"{label}, ms", justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("goal")
    for row in rows:
        ours, theirs = (Timing(tuple(row["samples"][label])) for label in (OURS, THEIRS))
        ratio = theirs.median / ours.median
        goal = row["goal"]
        verdict = "" if goal is None else f"≥ {goal:g}: {'met' if ratio >= goal else 'not met'}"
        times = (f"{1e3 * t.median:.3f} ± {1e3 * t.noise:.3f}" for t in (ours, theirs))
        table.add_row(row["module"], row["kind"], *times, f"{ratio:.2f}", verdict)
    return table


MODULES_SUITE = Suite(add_arguments, run, show)
