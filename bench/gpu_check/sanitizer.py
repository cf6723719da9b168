"""NVIDIA's compute-sanitizer over small calls of the CUDA back end, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = "compute-sanitizer"
# Accesses out of bounds or misaligned; hazards between threads that share memory.
TOOLS = ("memcheck", "racecheck")
PROGRAM = (sys.executable, "-m", "bench.gpu_check.sanitized")
SECONDS = 1800.0
FOUND = 9  # its exit status where it found something
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What one tool said: `problem` is what is wrong, "" for nothing."""

    tool: str
    told: str
    problem: str = ""


def run(program: Sequence[str] = PROGRAM) -> list[Outcome]:
    """Every tool's outcome; none where compute-sanitizer is not on PATH."""
    command = shutil.which(COMMAND)
    return [] if command is None else [_run(command, tool, program) for tool in TOOLS]


def _run(command: str, tool: str, program: Sequence[str]) -> Outcome:
    words = [command, "--tool", tool, "--error-exitcode", str(FOUND), *program]
    # each tensor in an allocation of its own, so that what lies beside one is out of bounds
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(tool, "", f"it took longer than {SECONDS:.0f} s")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "it gave no summary")
    if done.returncode == 0:
        return Outcome(tool, summary)
    what = "found something" if done.returncode == FOUND else f"ended with {done.returncode}"
    return Outcome(tool, summary, f"{what}: {' | '.join(lines[-8:])}")
