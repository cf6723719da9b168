"""The correctness matrix on the GPU: the tests that `pytest -m gpu` selects."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SECONDS = 3600.0
MOST_PROCESSES = 8  # which share the GPU
_WHOLE = (0, 1, 5)  # status of a pytest that came to its end: all passed, some failed, none there


@dataclass(frozen=True)
class Outcome:
    """Counts of tests; `failed` names those that failed, `problem` why none ran, "" if some did."""

    passed: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether all that a GPU has to show was shown: a skipped test shows nothing."""
        return self.passed > 0 and not (self.failed or self.skipped or self.problem)


def run(tests: Path = ROOT / "tests", mark: str = "gpu") -> Outcome:
    """Run the marked tests in a process of their own, whose output is passed on."""
    if not tests.is_dir():
        return Outcome(problem=f"{tests} is not there: the tests come with a checkout")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-m", mark, f"--junitxml={report}", str(tests)]
        words += _processes()
        try:
            done = subprocess.run(words, cwd=tests.parent, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(problem=f"the tests took longer than {SECONDS:.0f} s")
        if not report.is_file():
            return Outcome(problem="pytest ended without a report")
        outcome = read(report)
    if done.returncode in _WHOLE:
        return outcome
    return replace(outcome, problem=f"pytest ended early, with status {done.returncode}")


def _processes() -> list[str]:
    """Tests mostly compile, so several processes take them in turn where pytest-xdist is there.

    A test that breaks CUDA for its process then fails alone (tests/conftest.py).
    """
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(os.cpu_count() or 1, MOST_PROCESSES)), "--dist", "worksteal"]


def read(report: Path) -> Outcome:
    """What pytest reported."""
    passed = skipped = 0
    failed = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    none = not (passed or skipped or failed)
    return Outcome(passed, skipped, tuple(failed), "no test was found" if none else "")
