"""Compiled CUDA kernels on disk: a cubin per source, architecture, options and compiler.

Written under another name and moved into place, so any number of processes may compile the same
kernel at once: each sees a whole file or none. Behind the cubin a file has the cubin's SHA-256,
which tools that read cubins ignore.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import warnings
from pathlib import Path

from autotune.cache import cache_directory
from autotune.errors import CacheWarning
from flashrnn.runtime import cuda_compile
from flashrnn.runtime.cuda_compile import compiler_version, headers, options_for

_DIGEST_BYTES = 32


def cubin_of(name: str, source: str, sm: int) -> bytes:
    """The cubin of a source for compute capability sm / 10, compiled unless it is on the disk.

    name: a few words for the file's name. Raises as `cuda_compile.compile_source`; a file that is
    damaged, and a directory that cannot be written, are told by a CacheWarning.
    """
    path = cache_directory() / "kernels" / f"{name}-sm{sm}-{_key(source, sm)}.cubin"
    known = _read(path)
    if known is not None:
        return known
    cubin = cuda_compile.compile_source(source, sm)
    _write(path, source, cubin)
    return cubin


def _key(source: str, sm: int) -> str:
    state = hashlib.sha256()
    for part in (source, *options_for(sm), compiler_version()):
        state.update(part.encode() + b"\0")
    for name, text in headers().items():
        state.update(name.encode() + b"\0" + text)
    return state.hexdigest()[:20]


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    cubin, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if cubin and hashlib.sha256(cubin).digest() == digest:
        return cubin
    warnings.warn(f"discarded a damaged kernel, {path}", CacheWarning, stacklevel=3)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _write(path: Path, source: str, cubin: bytes) -> None:
    """The cubin, and beside it the source, to be read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as scratch:
            text, data = Path(scratch) / "kernel.cu", Path(scratch) / "kernel.cubin"
            text.write_text(source, encoding="utf-8")
            data.write_bytes(cubin + hashlib.sha256(cubin).digest())
            text.replace(path.with_suffix(".cu"))
            data.replace(path)
    except OSError as error:
        warnings.warn(
            f"the kernel {path.name} is used but not remembered: {error}; "
            "set FLASHRNN_CACHE to a directory that can be written",
            CacheWarning,
            stacklevel=3,
        )
