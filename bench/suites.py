"""The table of suites: a new one is an entry here and a file of its own.

A suite is what `flashrnn-bench run --suite NAME` runs. Its module is imported when it is asked for,
so that one suite's needs are no other's.
"""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import files
from bench.errors import UnknownSuite


@dataclass(frozen=True)
class Suite:
    """What the command line needs of a suite.

    add_arguments: its own options of `run`. run(options, out, file): do it, print, and write the
    results with `bench.files.write` as an object whose "suite" is the suite's name, best after each
    case. show(out, file): print such a file. report(file, directory): write an HTML page and
    pictures, return their paths; None where a suite has no page.
    """

    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Console, Path], None]
    show: Callable[[Console, Path], None]
    report: Callable[[Path, Path], list[Path]] | None = None


@dataclass(frozen=True)
class Entry:
    """Where a suite is ("module:attribute") and what it is about."""

    reference: str
    summary: str


SUITES = {
    "compile": Entry("bench.compiled.suite:COMPILE", "GPU tilings against the compiler, no GPU"),
    "compile-cuda": Entry("bench.cuda_suite:COMPILE_CUDA", "CUDA tilings against NVRTC, no GPU"),
    "cpu": Entry("bench.layers.suite:CPU", "every cell against every CPU peer, nine shapes"),
    "modules": Entry("bench.modules_suite:MODULES_SUITE", "whole modules against torch.nn's"),
    "quick": Entry("bench.layers.suite:QUICK", "an LSTM layer in three sizes"),
    "scan": Entry("bench.scan_suite:SCAN", "attention over prefixes against a copy, and peers"),
}


def suite_of(name: str) -> Suite:
    """The suite of this name. Raises UnknownSuite, which lists the known names."""
    try:
        reference = SUITES[name].reference
    except KeyError:
        raise UnknownSuite(name, SUITES) from None
    module, _, attribute = reference.partition(":")
    suite: Suite = getattr(importlib.import_module(module), attribute)
    return suite


def suite_in(path: Path) -> Suite:
    """The suite that wrote this file. Raises UnreadableReport, UnknownSuite, OSError."""
    return suite_of(files.suite_name(path))
