"""Compile a source once per machine: a cache keyed by all that the result depends on.

A library is compiled under a name of its own and moved into place, so any number of processes
may build the same kernel at once: each sees a whole file or none. What a program will need next
can be compiled beside it: a first call would else wait for several compilations in turn.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from autotune.cache import cache_directory
from autotune.device import Cpu
from autotune.errors import CacheWarning
from flashrnn.errors import CompilerError
from flashrnn.runtime.toolchain import OPTIMIZED, Compiler, find_compiler, source_directory

COMPILE_SECONDS = 120.0
INTRINSICS = "-DFLASHRNN_INTRINSICS"


def build(name: str, source: str, device: Cpu, level: str = OPTIMIZED) -> Path:
    """The shared library of this source, compiled unless an earlier build left it.

    name: a few words for the file's name. level: the compiler's flag for how much it optimizes.
    Raises CompilerError with the compiler's own words, and where the cache directory cannot be
    written.
    """
    job = _job(name, source, device, level)
    begun = _background.find(job)
    if begun is not None:
        return begun.result()
    return job.library if job.library.is_file() else job.run()


def build_soon(name: str, source: str, device: Cpu, level: str = OPTIMIZED) -> None:
    """Begin to build in the background; `build` of the same waits for it and tells what failed."""
    job = _job(name, source, device, level)
    if not job.library.is_file():
        _background.begin(job, device.cores)


@dataclass(frozen=True)
class _Job:
    """A source with all that its library depends on, settled by who asked."""

    source: str
    library: Path
    compiler: Compiler
    flags: tuple[str, ...]

    def run(self) -> Path:
        directory, name = self.library.parent, self.library.stem
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
                text = Path(scratch) / f"{name}.cpp"
                text.write_text(self.source, encoding="utf-8")
                made = Path(scratch) / "kernel.so"
                complaint = _compile(self.compiler, self.flags, text, made)
                if complaint:  # perhaps of a GCC whose builtins are others: csrc/cpu/x86.hpp
                    complaint = _compile(self.compiler, (*self.flags, INTRINSICS), text, made)
                if complaint:
                    raise CompilerError(complaint)
                text.replace(directory / text.name)  # kept beside the library, to be read
                made.replace(self.library)
        except OSError as error:
            raise CompilerError(
                f"cannot build {name}: {error}; set FLASHRNN_CACHE to a directory that can be "
                "written"
            ) from error
        return self.library


def _job(name: str, source: str, device: Cpu, level: str) -> _Job:
    compiler = find_compiler()
    flags = compiler.flags(device, level)
    digest = _digest(source, compiler, flags, device)
    return _Job(source, cache_directory() / "kernels" / f"{name}-{digest}.so", compiler, flags)


class _Background:
    """Builds that run beside the caller's work."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know of none: a forked child has no threads of its parent, and builds for itself."""
        self._lock = threading.Lock()
        self._begun: dict[_Job, Future[Path]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def find(self, job: _Job) -> Future[Path] | None:
        with self._lock:
            return self._begun.get(job)

    def begin(self, job: _Job, threads: int) -> None:
        with self._lock:
            if job in self._begun:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(threads, thread_name_prefix="flashrnn-build")
            try:
                future = self._pool.submit(job.run)
            except RuntimeError:  # the main thread has ended: `build` is left to do it
                return
            self._begun[job] = future
        future.add_done_callback(lambda _: self._forget(job))

    def _forget(self, job: _Job) -> None:
        with self._lock:
            self._begun.pop(job, None)


_background = _Background()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_background.clear)


def open_library(
    name: str, source: str, device: Cpu, entries: tuple[str, ...], level: str = OPTIMIZED
) -> ctypes.CDLL:
    """Build, load, and look up the entry points; a library that is damaged is compiled again."""
    path = build(name, source, device, level)
    try:
        return _open(str(path), entries)
    except (OSError, AttributeError) as error:
        warnings.warn(f"discarded a damaged kernel, {path}: {error}", CacheWarning, stacklevel=2)
        path.unlink(missing_ok=True)
        return _open(str(build(name, source, device, level)), entries)


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
