"""Generated Triton modules: written beside the other kernels, imported once per process.

Triton compiles a function from its source file, so each module is a file in the cache directory,
named by its content. Nothing here is imported before a kernel is asked for, and Triton with it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from autotune.cache import cache_directory
from flashrnn.errors import BackendError, CompilerError


def is_installed() -> bool:
    """Whether Triton can be imported, without doing so."""
    return importlib.util.find_spec("triton") is not None


def require() -> None:
    """Raise BackendError where Triton is missing."""
    if not is_installed():
        raise BackendError(
            'backend="triton" needs the package triton, which is not installed: '
            "pip install 'flashrnn-compiler[triton]'"
        )


def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 asks for Triton's interpreter, which runs on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@lru_cache(maxsize=1024)
def module_of(name: str, source: str) -> ModuleType:
    """The module of this source; name: a few words for its file.

    A module whose source says `interpreted` must be made while `interpreting()`: the decorator
    binds its functions to the interpreter or to the compiler. Raises BackendError without Triton,
    CompilerError where the cache directory cannot be written.
    """
    require()
    digest = hashlib.sha256(source.encode()).hexdigest()[:20]
    path = _written(f"{name}-{digest}.py", source)
    identifier = f"flashrnn_kernel_{digest}"
    specification = importlib.util.spec_from_file_location(identifier, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[identifier] = module  # Triton looks a function's module up by name
    specification.loader.exec_module(module)
    return module


def _written(name: str, source: str) -> Path:
    """The file of that source, moved into place whole; one with another content is replaced."""
    directory = cache_directory() / "kernels"
    path = directory / name
    try:
        if path.is_file() and path.read_bytes() == source.encode():
            return path
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
            text = Path(scratch) / name
            text.write_bytes(source.encode())
            text.replace(path)
    except OSError as error:
        raise CompilerError(
            f"cannot write {path}: {error}; set FLASHRNN_CACHE to a directory that can be written"
        ) from error
    return path
