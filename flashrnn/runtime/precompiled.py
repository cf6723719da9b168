"""Headers compiled once for all kernels that include them.

To read one, with <immintrin.h>, is a third of a kernel's compilation. GCC takes `x.hpp.gch`, if it
made that with the same flags, for `x.hpp` in a directory of an -I.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections import Counter
from pathlib import Path

from autotune.cache import cache_directory
from flashrnn.runtime.toolchain import COMPILE_SECONDS, Compiler, source_directory

AFTER = 2  # kernels that a process compiles without: for fewer a header takes longer than it saves
# GCC takes one precompiled header, before anything but comments.
_FIRST = re.compile(r'(?:\s|//[^\n]*\n)*#include "(cpu/\w+\.hpp)"')
_seen: Counter[Path] = Counter()
_refused: set[Path] = set()
_making = threading.Lock()


def include(source: str, compiler: Compiler, flags: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The -I by which a source finds its first header precompiled; none where it is not made.

    key: a digest of all but the source that a kernel depends on. The header is made when a process
    compiles its third kernel from it, and whoever comes next finds it on the disk.
    """
    first = _FIRST.match(source)
    if first is None or compiler.is_clang:
        return ()
    directory = cache_directory() / "headers" / key
    made = directory / f"{first[1]}.gch"
    _seen[made] += 1
    if made.is_file() or (_seen[made] > AFTER and _make(made, first[1], compiler, flags)):
        return (f"-I{directory}",)
    return ()


def discard(flags: tuple[str, ...]) -> None:
    """What `include` gave, where a kernel compiles only without: this process makes no other."""
    for directory in (Path(flag.removeprefix("-I")) for flag in flags):
        for made in directory.rglob("*.gch"):
            _refused.add(made)
            made.unlink(missing_ok=True)


def _make(made: Path, header: str, compiler: Compiler, flags: tuple[str, ...]) -> bool:
    """Whether it is there now. One thread makes one at a time; the others do without."""
    if made in _refused or not _making.acquire(blocking=False):
        return False
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent, prefix=".build-") as scratch:
            whole = Path(scratch) / made.name
            place = source_directory()
            command = [*compiler.command, *flags, f"-I{place}", "-x", "c++-header",
                       str(place / header), "-o", str(whole)]  # fmt: skip
            subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=True)
            whole.replace(made)
    except (OSError, subprocess.SubprocessError):
        _refused.add(made)  # kernels compile without, and say what is wrong where it is the cause
        return False
    finally:
        _making.release()
    return True
