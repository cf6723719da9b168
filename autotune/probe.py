"""Read what Linux says about the processor: /proc/cpuinfo, /sys/devices/system/cpu, cgroups.

Everything is a pure function of a root directory, so that a test can describe any machine with a
few files. A fact that the files do not hold is None; nothing here guesses.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

CPUS = Path("sys/devices/system/cpu")
CGROUPS = Path("sys/fs/cgroup")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Processor:
    """Which processor it is, in the terms of /proc/cpuinfo (on ARM: implementer and part)."""

    name: str
    vendor: str
    family: int
    model: int
    flags: frozenset[str] = field(repr=False)


@dataclass(frozen=True)
class Facts:
    """What could be read. Sizes in bytes; `cores` are physical cores that this process may use."""

    processor: Processor | None
    clock_mhz: float | None
    cores: int | None
    l1_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None
    l3_cores: int | None


def read(root: Path, cpus: Collection[int]) -> Facts:
    """All facts about the machine whose files lie under `root`, for a process that may run on
    the logical processors `cpus`."""
    info = _cpuinfo(root)
    first = min(cpus, default=0)
    caches = _caches(root, first)
    cores = _physical(root, cpus)
    quota = _quota(root)
    if quota is not None:
        cores = min(cores, max(1, int(quota)))
    l3 = caches.get(3)
    return Facts(
        processor=_processor(info),
        clock_mhz=_clock(root, first, info),
        cores=cores or None,
        l1_bytes=_share(caches.get(1)),
        l2_bytes=_share(caches.get(2)),
        l3_bytes=l3[0] if l3 else None,
        l3_cores=l3[1] if l3 else None,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _integer(text: str | None) -> int:
    try:
        return int(text or "", 0)
    except ValueError:
        return 0


def _processor(info: dict[str, str]) -> Processor | None:
    if "flags" in info:  # x86
        return Processor(
            name=" ".join(info.get("model name", "x86 processor").split()),
            vendor=info.get("vendor_id", ""),
            family=_integer(info.get("cpu family")),
            model=_integer(info.get("model")),
            flags=frozenset(info["flags"].split()),
        )
    if "Features" in info:  # ARM
        vendor, part = info.get("CPU implementer", "?"), info.get("CPU part", "?")
        return Processor(
            name=info.get("model name", f"ARM implementer {vendor} part {part}"),
            vendor=vendor,
            family=_integer(info.get("CPU architecture")),
            model=_integer(part),
            flags=frozenset(info["Features"].split()),
        )
    return None


def _clock(root: Path, cpu: int, info: dict[str, str]) -> float | None:
    """MHz: the highest the governor allows, else the present clock, else the name's."""
    khz = _integer(_text(root / CPUS / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"))
    if khz:
        return khz / 1000
    present = re.fullmatch(r"\d+(\.\d+)?", info.get("cpu MHz", ""))
    if present:
        return float(present[0])
    named = re.search(r"@ (\d+(?:\.\d+)?) ?GHz", info.get("model name", ""))
    return float(named[1]) * 1000 if named else None


def _cpu_list(text: str | None) -> frozenset[int]:
    """The kernel's list format: "0-3,8" means 0, 1, 2, 3 and 8."""
    found: set[int] = set()
    for part in (text or "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def _physical(root: Path, cpus: Collection[int]) -> int:
    """How many cores the logical processors `cpus` are: siblings of one core count once."""
    cores = set()
    for cpu in cpus:
        siblings = _cpu_list(_text(root / CPUS / f"cpu{cpu}/topology/thread_siblings_list"))
        cores.add(siblings or frozenset({cpu}))
    return len(cores)


def _caches(root: Path, cpu: int) -> dict[int, tuple[int, int]]:
    """Level -> (bytes, cores that share it), of the data and unified caches of one processor."""
    caches: dict[int, tuple[int, int]] = {}
    for entry in sorted((root / CPUS / f"cpu{cpu}/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(entry / "size") or "")
        level = _integer(_text(entry / "level"))
        if size and int(size[1]) and level and _text(entry / "type") != "Instruction":
            sharing = _cpu_list(_text(entry / "shared_cpu_list")) or {cpu}
            caches[level] = (int(size[1]) * UNITS[size[2]], _physical(root, sharing))
    return caches


def _share(cache: tuple[int, int] | None) -> int | None:
    """One core's part of a cache that several cores may share."""
    return cache[0] // cache[1] if cache else None


def _quota(root: Path) -> float | None:
    """Processors' worth of time that the control groups grant, the tightest level counts."""
    quotas = []
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = CGROUPS / "cpu" if controllers else CGROUPS
        here = Path(path.strip("/"))
        for folder in (here, *here.parents):
            quotas.append(_quota_of(root / mount / folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    joint = _text(folder / "cpu.max")  # version 2: "150000 100000" or "max 100000"
    if joint is not None:
        quota, _, period = joint.partition(" ")
    else:  # version 1, where -1 means no limit
        quota = _text(folder / "cpu.cfs_quota_us") or ""
        period = _text(folder / "cpu.cfs_period_us") or ""
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        return int(quota) / int(period)
    return None
