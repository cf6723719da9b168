"""What tuning found, remembered on disk: one small JSON file per device and problem.

The library reads it at every call, so a look-up must cost microseconds: the first one for a
problem reads the file, later ones in the same process neither open nor stat anything, whether it
was a hit or a miss. `store` in this process is seen at once; what *another* process stores later
is seen after a restart.

A file is written under another name and moved into place, so readers and writers in any number of
processes see a whole entry or none; the last writer wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autotune.device import Device
from autotune.errors import CacheWarning
from autotune.space import Problem

SCHEMA = 2
_memo: dict[object, Remembered | None] = {}
_stores = 0


@dataclass(frozen=True)
class Remembered:
    """What a process keeps of an entry."""

    config: dict[str, int]
    step_seconds: float | None  # measured


@dataclass(frozen=True)
class Entry:
    """One remembered answer. Times in seconds of `steps` steps, None where nothing was timed."""

    name: str
    device: str  # the fingerprint
    problem: dict[str, int | str]
    config: dict[str, int]
    description: str
    seconds: float | None
    default_seconds: float | None
    binding: list[str]
    steps: int = 1
    when: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    schema: int = SCHEMA


def cache_directory() -> Path:
    """Where this project keeps what it can make again: tuned answers, compiled kernels.

    $FLASHRNN_CACHE, else $XDG_CACHE_HOME/flashrnn, else ~/.cache/flashrnn. Not created here.
    """
    own = os.environ.get("FLASHRNN_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "flashrnn"


def lookup(problem: Problem, device: Device) -> dict[str, int] | None:
    """The configuration remembered for this problem on this device, None if there is none.

    Never raises: an entry that cannot be read is discarded with a CacheWarning.
    """
    found = _recall(problem, device)
    return None if found is None else dict(found.config)


def step_seconds(problem: Problem, device: Device) -> float | None:
    """The measured time of one step with what `lookup` finds; None where nothing was timed."""
    found = _recall(problem, device)
    return None if found is None else found.step_seconds


def _recall(problem: Problem, device: Device) -> Remembered | None:
    key = _key(problem, device.fingerprint)
    if key not in _memo:
        entry = _read(_path(problem, device.fingerprint))
        matches = entry and entry.device == device.fingerprint and entry.problem == problem
        _memo[key] = Remembered(entry.config, _per_step(entry)) if entry and matches else None
    return _memo[key]


def _per_step(entry: Entry) -> float | None:
    return None if entry.seconds is None else entry.seconds / entry.steps


def store(entry: Entry) -> bool:
    """Remember an entry; False, with a CacheWarning, where the directory cannot be written.

    This process sees the entry either way.
    """
    remember_here(entry.problem, entry.device, entry.config, _per_step(entry))
    path = _path(entry.problem, entry.device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".new")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(entry), file, indent=1, sort_keys=True)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(
            f"the tuned configuration of {entry.name} is used but not remembered: {error}; "
            "set FLASHRNN_CACHE to a directory that can be written",
            CacheWarning,
            stacklevel=2,
        )
        return False
    return True


def remember_here(
    problem: Problem,
    fingerprint: str,
    config: Mapping[str, int],
    step_seconds: float | None = None,
) -> None:
    """Answer later look-ups of this process with these, without writing anything."""
    global _stores  # noqa: PLW0603  (a counter of the process, like the memo)
    _memo[_key(problem, fingerprint)] = Remembered(dict(config), step_seconds)
    _stores += 1  # after the answer: who sees the new count finds the new answer


def generation() -> int:
    """Changes whenever this process learns a new answer: what callers keep is then out of date."""
    return _stores


def entries() -> list[Entry]:
    """Everything remembered on this disk, by name and age; entries of other versions are left."""
    found = (_read(path) for path in _directory().glob(f"*-v{SCHEMA}.json"))
    return sorted((entry for entry in found if entry), key=lambda entry: (entry.name, entry.when))


def _directory() -> Path:
    return cache_directory() / "tuned"


def _key(problem: Problem, fingerprint: str) -> object:
    where = (os.environ.get("FLASHRNN_CACHE"), os.environ.get("XDG_CACHE_HOME"))
    return (where, fingerprint, frozenset(problem.items()))


def _path(problem: Problem, fingerprint: str) -> Path:
    # The schema is part of the name: installed versions that differ in it do not meet.
    words = json.dumps([SCHEMA, fingerprint, dict(problem)], sort_keys=True)
    return _directory() / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}-v{SCHEMA}.json"


def _read(path: Path) -> Entry | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    except UnicodeDecodeError as error:
        _discard(path, str(error))
        return None
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError) as error:
        _discard(path, str(error))
        return None


def _parse(data: Any) -> Entry:
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {type(data).__name__}")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')!r}, this version reads {SCHEMA}")
    entry = Entry(**data)
    config = entry.config
    if not isinstance(config, dict) or not all(type(value) is int for value in config.values()):
        raise ValueError(f"configuration {config!r} is not a mapping to integers")
    if type(entry.steps) is not int or entry.steps < 1:
        raise ValueError(f"{entry.steps!r} steps are no number of steps")
    if not (entry.seconds is None or isinstance(entry.seconds, float)):
        raise ValueError(f"{entry.seconds!r} is no time")
    return entry


def _discard(path: Path, why: str) -> None:
    warnings.warn(f"discarded unreadable {path}: {why}", CacheWarning, stacklevel=3)
    with contextlib.suppress(OSError):
        path.unlink()
