"""A pack: tilings for one GPU and a grid of shapes, as a file and for look-ups.

The file is <key of the GPU>.json: in the cache directory, where `flashrnn pack` writes it, or
beside this module, shipped. Its tilings were chosen by the cost model; where the compiler's report
was asked too, it had no fault to find. None was measured, and a tuned one comes first.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic

from autotune.cache import cache_directory
from autotune.errors import CacheWarning
from autotune.gpu import Gpu
from flashrnn.packs.cells import CELLS
from flashrnn.packs.cuda import CUDA
from flashrnn.packs.kind import (
    Choice,
    ChosenT,
    Classes,
    Kind,
    ProblemT,
    Section,
    TilingT,
    of_class,
)
from flashrnn.packs.scans import SCANS

VERSION = 2
SHIPPED = Path(__file__).parent
KINDS: Mapping[str, Kind[Any, Any]] = {kind.name: kind for kind in (CELLS, SCANS, CUDA)}


@dataclass(frozen=True)
class Pack:
    """The tilings for one GPU.

    fingerprint: the GPU's. versions: of what took part in choosing. sections: what is held of each
    kind, by its name.
    """

    fingerprint: str
    versions: Mapping[str, str]
    sections: Mapping[str, Section[Any]]

    def tiling(self, kind: Kind[ProblemT, TilingT], problem: ProblemT) -> TilingT | None:
        """For this problem; None where it holds none."""
        section: Section[TilingT] | None = self.sections.get(kind.name)
        choice = section and section.choices.get(kind.key_of(problem))
        if not choice:
            return None
        outer, inner = kind.sizes_of(problem)
        classes = of_class(choice, outer)
        return None if classes is None else of_class(classes, inner)


@dataclass(frozen=True)
class Found(Generic[TilingT]):
    """A pack's tiling for a problem, and which pack it is, in words."""

    tiling: TilingT
    by: str


def lookup(kind: Kind[ProblemT, TilingT], problem: ProblemT, gpu: Gpu) -> Found[TilingT] | None:
    """The tiling of the user's pack for this GPU, else of the shipped one; None without.

    Never raises: a pack that is damaged or of another version is ignored with a CacheWarning.
    """
    if not kind.usable():
        return None
    for path in (cache_directory() / "packs" / f"{gpu.key}.json", SHIPPED / f"{gpu.key}.json"):
        pack = _read(path)
        if pack is None or pack.fingerprint != gpu.fingerprint:
            continue
        found = pack.tiling(kind, problem)
        if found is None:
            continue
        if kind.fits(found, problem, gpu):
            chosen_by = pack.sections[kind.name].chosen_by
            return Found(found, f"the pack {path.name} by the {chosen_by}")
        _ignored(path, f"{found} does not fit {kind.key_of(problem)}")
    return None


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
        return Pack(
            fingerprint=str(data["fingerprint"]),
            versions=dict(data["versions"]),
            sections={name: _section(KINDS[name], e) for name, e in data["kernels"].items()},
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
    head = {
        "version": VERSION,
        "fingerprint": pack.fingerprint,
        "measured": False,
        "versions": dict(pack.versions),
    }
    kernels = ",\n".join(f" {_json(k)}: {{\n{_text(e)}\n }}" for k, e in pack.sections.items())
    start = json.dumps(head, indent=1).removesuffix("\n}")
    return f'{start},\n "kernels": {{\n{kernels}\n }}\n}}\n'


def _text(section: Section[Any]) -> str:
    every = {t for choice in section.choices.values() for _, inner in choice for _, t in inner}
    every |= {t for rejected in section.rejected.values() for t in rejected}
    listed = sorted(every, key=lambda t: (list(asdict(t)), list(asdict(t).values())))
    at = {tiling: number for number, tiling in enumerate(listed)}
    choices: dict[str, list[str]] = {}  # those that agree together
    for key, choice in sorted(section.choices.items()):
        classes = [[outer, [[most, at[t]] for most, t in inner]] for outer, inner in choice]
        choices.setdefault(_json(classes), []).append(key)
    parts = {
        "tilings": _tables(listed),
        "choices": [f"[{_json(keys)},{classes}]" for classes, keys in choices.items()],
        "rejected": [
            _json([key, sorted(at[t] for t in entry)])
            for key, entry in sorted(section.rejected.items())
        ],
    }
    listed_parts = (f'  "{name}": {_lines(lines)}' for name, lines in parts.items())
    return ",\n".join([f'  "chosen_by": {_json(section.chosen_by)}', *listed_parts])


def _tables(listed: Collection[Any]) -> list[str]:
    """Tilings with the same fields together, numbered across tables."""
    rows: dict[str, list[str]] = {}
    for tiling in listed:
        config = asdict(tiling)
        rows.setdefault(_json(list(config)), []).append(_json(list(config.values())))
    return [f'{{"fields":{fields},"rows":{_lines(lines)}}}' for fields, lines in rows.items()]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _lines(lines: Collection[str]) -> str:
    return "[\n" + ",\n".join(f"   {line}" for line in lines) + "\n  ]" if lines else "[]"


def _section(kind: Kind[Any, TilingT], entry: Mapping[str, Any]) -> Section[TilingT]:
    listed = [
        _tiling(kind, dict(zip(table["fields"], row, strict=True)))
        for table in entry["tilings"]
        for row in table["rows"]
    ]
    choices: dict[str, Choice[TilingT]] = {}
    for keys, outer in entry["choices"]:
        choice = _classes(
            (most, _classes((size, listed[at]) for size, at in inner)) for most, inner in outer
        )
        choices |= dict.fromkeys(keys, choice)
    rejected = {key: tuple(listed[at] for at in e) for key, e in entry["rejected"]}
    return Section(str(entry["chosen_by"]), choices, rejected)


def _tiling(kind: Kind[Any, TilingT], config: Mapping[str, Any]) -> TilingT:
    for name, value in config.items():
        if type(value) not in (int, str):
            raise ValueError(f"{name} = {value!r} is neither an integer nor a word")
    return kind.tiling_of(config)


def _classes(found: Iterable[tuple[Any, ChosenT]]) -> Classes[ChosenT]:
    among = tuple(found)
    for most, _ in among:
        if most is not None and (type(most) is not int or most < 1):
            raise ValueError(f"a class of sizes up to {most!r}")
    return among
