"""Result files: JSON objects that name their suite, whole at any time."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import UnreadableReport


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write as JSON under another name and move into place: a reader sees old or new, all of it."""
    write_bytes(path, (json.dumps(data, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for any content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """The object that `write` wrote. Raises UnreadableReport, OSError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableReport(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(data, dict):
        raise UnreadableReport(path, f"expected an object, found {type(data).__name__}")
    return data


def suite_name(path: Path) -> str:
    """The suite that wrote this file. Raises UnreadableReport, OSError."""
    name = read(path).get("suite")
    if not isinstance(name, str):
        raise UnreadableReport(path, "it names no suite")
    return name
