"""A pack: tilings for one GPU and a grid of shapes, as a file and for look-ups.

The file is <key of the GPU>.json: in the cache directory, where `flashrnn pack` writes it, or
beside this module, shipped. Its tilings were chosen by the cost model; where the compiler's report
was asked too, none of the fused ones spills. None was measured, and a tuned one comes first.

A shape is looked up by classes. D is padded to a power of two, as kernels do it. Of B and N counts
how many rows a program can be given, and how many programs of 16 rows there are, both rounded up
to powers of two: in the cost model the choice depends on no more.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from autotune.cache import cache_directory
from autotune.errors import CacheWarning
from autotune.gpu import Gpu
from constrint import Infeasible
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32
from flashrnn.emit.triton import TF32
from flashrnn.tiling.triton import (
    FEWEST_ROWS,
    MOST_ROWS,
    Tiling,
    TritonProblem,
    schedule_of,
    tiling_of,
    tilings,
)
from flashrnn.tiling.triton_needs import holds_r

VERSION = 1
SHIPPED = Path(__file__).parent

# Of one class of batches, ascending: up to how many programs which tiling; None: any number.
Runs = tuple[tuple["int | None", Tiling], ...]
# Per class of batches, ascending, by its largest B; the last one serves all above too.
Choice = tuple[tuple[int, Runs], ...]


@dataclass(frozen=True)
class Pack:
    """The tilings for one GPU.

    fingerprint: the GPU's. chosen_by: what chose, in words; versions: of what took part.
    choices, by `key_of` a problem. rejected: fused tilings that the cost model likes and the
    compiler's report ruled out, by the same keys.
    """

    fingerprint: str
    chosen_by: str
    versions: Mapping[str, str]
    choices: Mapping[str, Choice]
    rejected: Mapping[str, tuple[Tiling, ...]] = field(default_factory=dict)

    def tiling(self, problem: TritonProblem) -> Tiling | None:
        """For this problem; None where it holds none."""
        choice = self.choices.get(key_of(problem))
        if not choice:
            return None
        runs = next((runs for B, runs in choice if problem.dims.B <= B), choice[-1][1])
        programs = programs_of(problem.dims)
        return next((t for most, t in runs if most is None or programs <= most), None)


@dataclass(frozen=True)
class Found:
    """A pack's tiling for a problem, and which pack it is, in words."""

    tiling: Tiling
    by: str


def key_of(problem: TritonProblem) -> str:
    """What a problem is filed under, its batch and heads left out."""
    tf32 = problem.dtype == FLOAT32 and problem.precision == TF32
    dtype = "tf32" if tf32 else problem.dtype.name
    return f"{problem.program.cell.key} {problem.direction} {dtype} {problem.padded}"


def programs_of(dims: Dims) -> int:
    """Programs of the fewest rows for this batch and these heads, as a power of two."""
    programs = -(-max(1, dims.B) // FEWEST_ROWS) * dims.N
    return 1 << (programs - 1).bit_length()


def lookup(problem: TritonProblem, gpu: Gpu) -> Found | None:
    """The tiling of the user's pack for this GPU, else of the shipped one; None without.

    None too where the installed Triton does not keep R in registers: packs are for one that does.
    Never raises: a pack that is damaged or of another version is ignored with a CacheWarning.
    """
    if not holds_r():
        return None
    for path in (cache_directory() / "packs" / f"{gpu.key}.json", SHIPPED / f"{gpu.key}.json"):
        pack = _read(path)
        if pack is None or pack.fingerprint != gpu.fingerprint:
            continue
        found = pack.tiling(problem)
        if found is None:
            continue
        if _fits(found, problem, gpu):
            return Found(found, f"the pack {path.name} by the {pack.chosen_by}")
        _ignored(path, f"{found} does not fit {key_of(problem)}")
    return None


def _fits(tiling: Tiling, problem: TritonProblem, gpu: Gpu) -> bool:
    try:
        return tiling in tilings(problem, gpu, schedule_of(tiling))
    except Infeasible:
        return False


@lru_cache(maxsize=64)
def _read(path: Path) -> Pack | None:
    """Once per process, so that a warning comes once."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError) as error:
        _ignored(path, str(error))
        return None


def _ignored(path: Path, why: str) -> None:
    warnings.warn(
        f"{path} is ignored, the cost model chooses: {why}; `flashrnn pack` writes a new one",
        CacheWarning,
        stacklevel=2,
    )


def read(path: Path) -> Pack:
    """What `write` wrote. Raises ValueError for anything else, OSError."""
    data = json.loads(path.read_text(encoding="utf-8"))
    try:
        if data["version"] != VERSION:
            raise ValueError(f"it is of version {data['version']!r}, this library reads {VERSION}")
        listed = [_tiling(entry) for entry in data["tilings"]]
        return Pack(
            fingerprint=str(data["fingerprint"]),
            chosen_by=str(data["chosen_by"]),
            versions=dict(data["versions"]),
            choices={key: _choice(entry, listed) for key, entry in data["choices"].items()},
            rejected={key: tuple(listed[at] for at in e) for key, e in data["rejected"].items()},
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"it is no pack: {type(error).__name__}: {error}") from error


def write(pack: Pack, path: Path) -> None:
    """Write under another name and move into place. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text(pack))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _read.cache_clear()


def text(pack: Pack) -> str:
    """The file: JSON with a line for each entry."""
    every = {t for choice in pack.choices.values() for _, runs in choice for _, t in runs}
    every |= {t for rejected in pack.rejected.values() for t in rejected}
    listed = sorted(every, key=lambda t: (schedule_of(t), sorted(t.as_config().items())))
    at = {tiling: number for number, tiling in enumerate(listed)}
    head = {
        "version": VERSION,
        "fingerprint": pack.fingerprint,
        "chosen_by": pack.chosen_by,
        "measured": False,
        "versions": dict(pack.versions),
    }
    choices = {
        key: [[B, [[most, at[t]] for most, t in runs]] for B, runs in choice]
        for key, choice in pack.choices.items()
    }
    rejected = {key: sorted(at[t] for t in entry) for key, entry in pack.rejected.items()}
    rows = [{"schedule": schedule_of(t), **asdict(t)} for t in listed]
    tilings_ = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return (
        json.dumps(head, indent=1).removesuffix("\n}")
        + f',\n "tilings": [\n{tilings_}\n ],\n "choices": {_lines(choices)},\n'
        + f' "rejected": {_lines(rejected)}\n}}\n'
    )


def _lines(entries: Mapping[str, Any]) -> str:
    if not entries:
        return "{}"
    lines = (f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items()))
    return "{\n" + ",\n".join(lines) + "\n }"


def _tiling(entry: Mapping[str, Any]) -> Tiling:
    sizes = {name: value for name, value in entry.items() if name != "schedule"}
    for name, value in sizes.items():
        if type(value) is not int:
            raise ValueError(f"{name} = {value!r} is not an integer")
    tiling = tiling_of(sizes)
    if schedule_of(tiling) != entry["schedule"]:
        raise ValueError(f"{sizes} is no tiling of the schedule {entry['schedule']!r}")
    return tiling


def _choice(entry: Any, listed: list[Tiling]) -> Choice:
    choice = []
    for B, runs in entry:
        if type(B) is not int or not 1 <= B <= MOST_ROWS:
            raise ValueError(f"a class of batches up to {B!r}")
        choice.append((B, tuple((most, listed[at]) for most, at in runs)))
    return tuple(choice)
