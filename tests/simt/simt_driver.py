"""Build a kernel with csrc/simt and run it on the CPU; csrc/simt/README.md says how.

The model itself is compiled once per state of its sources. Builds lie in the tests' cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CSRC = Path(__file__).parents[2] / "csrc"
SIMT = CSRC / "simt"
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# A kernel's plain loads and stores call csrc/simt/instrument.cpp; lines are found by addr2line.
KERNEL_FLAGS = [
    "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-g1", "-O1",
    "-fno-gnu-unique",  # kernels that are loaded beside each other keep their own tables
]  # fmt: skip
ORDERS = ("forward", "reverse", "random")
KINDS = ("read_only", "output", "read_write")
GUARD = 4096
REPORT_BYTES = 1 << 16


class CompileError(Exception):
    """g++ refused a kernel; the text is what it said."""


class _Region(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("guard", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_uint64),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("races", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("region_count", ctypes.c_uint64),
        ("regions", ctypes.POINTER(_Region)),
        ("report", ctypes.c_char_p),
        ("report_bytes", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Region:
    """Global memory that a kernel may touch; `kind` is one of KINDS, an output begins as 0xFF."""

    name: str
    address: int
    size: int
    kind: str
    guard: int = 0  # bytes before and behind it that nothing else occupies


@dataclass(frozen=True)
class Array:
    """A NumPy array between guard zones that no one else uses."""

    values: np.ndarray
    region: Region
    block: np.ndarray

    @property
    def address(self) -> int:
        return self.region.address


def array(name: str, values: np.ndarray, kind: str = "read_only") -> Array:
    """A copy of `values`, on 128 bytes."""
    values = np.ascontiguousarray(values)
    block = np.zeros(values.nbytes + 2 * GUARD + 128, np.uint8)
    start = GUARD + -(block.ctypes.data + GUARD) % 128
    inside = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    inside[...] = values
    region = Region(name, inside.ctypes.data, values.nbytes, kind, GUARD)
    return Array(inside, region, block)


def _cache() -> Path:
    base = Path(os.environ.get("FLASHRNN_CACHE", Path(tempfile.gettempdir()) / "flashrnn-tests"))
    folder = base / "simt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(key: str, suffix: str, sources: list[str], flags: list[str]) -> Path:
    """The file that `key` names, compiled once; written aside and moved into place."""
    target = _cache() / (hashlib.sha256(key.encode()).hexdigest()[:32] + suffix)
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or shutil.which("g++") or "g++"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, *flags, *sources, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(done.stderr)
        made.replace(target)
    return target


def _text_of(folder: Path) -> str:
    files = [*sorted(folder.glob("*.hpp")), *sorted(folder.glob("*.cpp"))]
    return "\n".join(f.read_text() for f in files)


class Library:
    """A kernel's translation unit with the model linked to it."""

    def __init__(self, source: str, include: Sequence[Path] = (CSRC,)) -> None:
        """Compile C++ `source`, which may include what lies below the folders `include`."""
        model = _text_of(SIMT) + " ".join(FLAGS)
        here = [f"-I{CSRC}"]
        objects = [
            str(_compile(f"{f.name}\n{model}", ".o", [str(f)], [*here, "-c"]))
            for f in sorted(SIMT.glob("*.cpp"))
        ]
        headers = "\n".join(_text_of(folder / "cuda") for folder in include)
        key = "\n".join([model, source, headers, *KERNEL_FLAGS])
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            file = Path(folder) / "kernel.cpp"
            file.write_text(f'#line 1 "kernel.cpp"\n{source}')
            flags = [*KERNEL_FLAGS, *(f"-I{i}" for i in include), "-c"]
            kernel = _compile(key, ".o", [str(file)], flags)
        self._path = _compile(f"{key}\nlinked", ".so", [str(kernel), *objects], ["-shared"])
        self._library = ctypes.CDLL(str(self._path))

    def call(self, name: str) -> int:
        """What a function without arguments returns."""
        return int(getattr(self._library, name)())

    def run(
        self,
        name: str,
        arguments: ctypes.Structure | None,
        regions: Sequence[Region],
        grid: tuple[int, ...] = (1,),
        block: tuple[int, ...] = (32,),
        cluster: tuple[int, ...] = (1,),
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
        races: bool = True,
    ) -> list[str]:
        """Launch `name`; the issues found, one line each. None: the kernel ran to its end."""
        table = (_Region * max(1, len(regions)))(
            *[
                _Region(r.address, r.size, r.guard, r.name.encode(), KINDS.index(r.kind))
                for r in regions
            ]
        )
        report = ctypes.create_string_buffer(REPORT_BYTES)
        launch = _Launch(
            _three(grid), _three(block), _three(cluster), shared, ORDERS.index(order), int(races),
            seed, len(regions), table, ctypes.cast(report, ctypes.c_char_p), REPORT_BYTES,
        )  # fmt: skip
        function = getattr(self._library, name)
        passed = ctypes.byref(arguments) if arguments is not None else None
        count = function(ctypes.byref(launch), passed)
        issues = report.value.decode().splitlines()
        assert count >= len(issues) and (count == 0) == (not issues)
        return [self._with_lines(issue) for issue in issues]

    def _with_lines(self, issue: str) -> str:
        """Addresses of instructions as source lines, from the innermost inlined call outwards."""
        return re.sub(r"<([0-9a-f]+)>", lambda found: self._line(int(found[1], 16)), issue)

    def _line(self, address: int) -> str:
        # the call's own last byte, since what is known is where it returns to
        command = ["addr2line", "-i", "-e", str(self._path), hex(address - 1)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [Path(line.split(" ")[0]).name for line in told.splitlines()]
        return " in ".join(lines)


def _three(d: tuple[int, ...]):
    return (ctypes.c_uint32 * 3)(*(*d, 1, 1)[:3])


class Pointers(ctypes.Structure):
    """Arguments of the tests' kernels: up to four arrays and a number."""

    _fields_ = [("p", ctypes.c_void_p * 4), ("n", ctypes.c_int64)]


def pointers(*arrays: Array, n: int = 0) -> Pointers:
    return Pointers((ctypes.c_void_p * 4)(*[a.address for a in arrays]), n)
