"""Compile a source once per machine: a cache keyed by all that the result depends on.

A library is compiled under a name of its own and moved into place, so any number of processes
may build the same kernel at once: each sees a whole file or none.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from autotune.cache import cache_directory
from autotune.device import Cpu
from autotune.errors import CacheWarning
from flashrnn.errors import CompilerError
from flashrnn.runtime.toolchain import Compiler, find_compiler, source_directory

COMPILE_SECONDS = 120.0
INTRINSICS = "-DFLASHRNN_INTRINSICS"


def build(name: str, source: str, device: Cpu) -> Path:
    """The shared library of this source, compiled unless an earlier build left it.

    name: a few words for the file's name. Raises CompilerError with the compiler's own words,
    and where the cache directory cannot be written.
    """
    compiler = find_compiler()
    flags = compiler.flags(device)
    digest = _digest(source, compiler, flags, device)
    directory = cache_directory() / "kernels"
    library = directory / f"{name}-{digest}.so"
    if library.is_file():
        return library
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
            text = Path(scratch) / f"{name}-{digest}.cpp"
            text.write_text(source, encoding="utf-8")
            made = Path(scratch) / "kernel.so"
            complaint = _compile(compiler, flags, text, made)
            if complaint:  # perhaps of a GCC whose builtins are others: csrc/cpu/x86.hpp
                complaint = _compile(compiler, (*flags, INTRINSICS), text, made)
            if complaint:
                raise CompilerError(complaint)
            text.replace(directory / text.name)  # kept beside the library, to be read
            made.replace(library)
    except OSError as error:
        raise CompilerError(
            f"cannot build {name}: {error}; set FLASHRNN_CACHE to a directory that can be written"
        ) from error
    return library


def open_library(name: str, source: str, device: Cpu, entries: tuple[str, ...]) -> ctypes.CDLL:
    """Build, load, and look up the entry points; a library that is damaged is compiled again."""
    path = build(name, source, device)
    try:
        return _open(str(path), entries)
    except (OSError, AttributeError) as error:
        warnings.warn(f"discarded a damaged kernel, {path}: {error}", CacheWarning, stacklevel=2)
        path.unlink(missing_ok=True)
        return _open(str(build(name, source, device)), entries)


@lru_cache(maxsize=256)
def _open(path: str, entries: tuple[str, ...]) -> ctypes.CDLL:
    """The library, its entry points ready to take a packed argument block and give a size."""
    library = ctypes.CDLL(path)
    for entry in entries:
        function = getattr(library, entry)
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int64
    return library


def _compile(compiler: Compiler, flags: tuple[str, ...], source: Path, library: Path) -> str:
    """What the compiler has against the source, nothing where it made the library."""
    command = [*compiler.command, *flags, f"-I{source_directory()}", str(source), "-o",
               str(library)]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CompilerError(
            f"{compiler.version} did not finish {source.stem} in {COMPILE_SECONDS:.0f} s"
        ) from error
    if done.returncode == 0:
        return ""
    return (
        f"{compiler.version} rejected {source.stem}:\n{done.stderr.strip()[-4000:]}\n"
        f"command: {' '.join(command)}"
    )


def _digest(source: str, compiler: Compiler, flags: tuple[str, ...], device: Cpu) -> str:
    # the processor too: -mtune=native means another thing on another one
    parts = (source, primitives_digest(), " ".join((*compiler.command, *flags)), compiler.version,
             device.name, os.uname().machine)  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@lru_cache(maxsize=1)
def primitives_digest() -> str:
    """A digest of csrc/cpu: kernels built from other primitives are other kernels."""
    state = hashlib.sha256()
    for path in sorted((source_directory() / "cpu").glob("*.hpp")):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]
