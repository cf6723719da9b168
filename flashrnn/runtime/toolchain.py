"""The C++ compiler: which one, and with which flags."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from autotune.device import Cpu
from flashrnn.errors import CompilerError

# No -ffast-math: it makes a whole process flush subnormals, and its divisions are inexact. No
# contraction: what becomes a fused multiply-add is decided in the source, so that a row computes
# the same bits in whichever register tile it lands.
_FLAGS = (
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
)
# By measurement: at -O2 recurrences are up to 13 % slower; attention's scans are as fast
# forward and 1 to 4 % slower backward, and compile in half the time.
OPTIMIZED, QUICKLY_OPTIMIZED = "-O3", "-O2"
_ISA_FLAGS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "generic": (),
}
_CANDIDATES = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C++20, and what it says of its version."""

    command: tuple[str, ...]
    version: str

    def flags(self, device: Cpu, level: str) -> tuple[str, ...]:
        """Flags for a shared library that runs on the device's instruction set."""
        tune = ("-mtune=native",) if device.isa != "generic" else ()
        return (*_FLAGS, level, *_ISA_FLAGS[device.isa], *tune)


def find_compiler() -> Compiler:
    """$CXX if set, else the first of c++, g++, clang++ on PATH.

    Raises CompilerError where there is none, or $CXX does not run.
    """
    return _find(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@lru_cache(maxsize=16)
def _find(cxx: str, _path: str) -> Compiler:
    if cxx.strip():
        return _asked(tuple(shlex.split(cxx)), f"$CXX is {cxx!r}, which")
    for name in _CANDIDATES:
        if shutil.which(name):
            return _asked((name,), f"{name!r}")
    raise CompilerError(
        f"no C++ compiler: $CXX is not set and none of {', '.join(_CANDIDATES)} is on PATH. "
        "Install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
        "macOS: xcode-select --install) or set CXX. "
        'Without one, backend="reference" still works, slowly.'
    )


def _asked(command: tuple[str, ...], what: str) -> Compiler:
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CompilerError(
            f"{what} cannot be run: {str(error).rstrip('.')}. Set CXX to a C++20 compiler "
            '(tested: g++ 12 and clang++ 14); backend="reference" works without one.'
        ) from error
    return Compiler(command, answer.stdout.splitlines()[0] if answer.stdout else "unknown")


@lru_cache(maxsize=1)
def source_directory() -> Path:
    """Where csrc lies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "csrc", package.parent / "csrc"):
        if (place / "cpu" / "forward.hpp").is_file():
            return place
    raise CompilerError(f"the kernel sources are missing: no csrc in {package}; reinstall")
