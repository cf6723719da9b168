"""The processor that a kernel is tuned for: what the probe read, completed from devices.toml.

A CPU is described here, a GPU in `gpu.py`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from autotune import probe
from autotune.errors import IsaUnavailable
from autotune.probe import Processor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from autotune.gpu import Gpu

TABLE = Path(__file__).with_name("devices.toml")
LEVELS = ("l1", "l2", "l3", "memory")


class Device:
    """A processor that kernels are tuned for: a `Cpu` or a `Gpu`.

    `fingerprint` is all that a tuned answer depends on, as one short line: the same on each start.
    """

    name: str
    kind: str  # "cpu" or "cuda"

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    @overload
    @staticmethod
    def current(kind: Literal["cpu"] = "cpu") -> Cpu: ...
    @overload
    @staticmethod
    def current(kind: Literal["cuda"]) -> Gpu: ...
    @staticmethod
    def current(kind: Literal["cpu", "cuda"] = "cpu") -> Cpu | Gpu:
        """The processor that this process runs on: the CPU, probed once per process.

        For "cuda" the GPU that torch uses at present. Raises NoGpu where there is none.
        """
        if kind == "cpu":
            return _current()
        from autotune import gpu

        return gpu.current()

    @staticmethod
    def named(name: str) -> Gpu:
        """A GPU of the table, "h100-sxm": kernels are compiled for it without having it.

        "cuda" is the GPU of this machine. Raises UnknownDevice, which lists close matches.
        """
        from autotune import gpu

        return gpu.current() if name == "cuda" else gpu.named(name)


@dataclass(frozen=True)
class Cpu(Device):
    """A CPU as one process may use it. Sizes in bytes, rates per clock cycle and core.

    `fma_per_cycle` and `loads_per_cycle` count full-width vector instructions of `isa`.
    `l1_bytes` and `l2_bytes` are one core's part; `l3_bytes` is shared by `l3_cores` cores.
    `assumed` names the fields that the machine did not tell and that the table's cautious
    values stand in for.
    """

    name: str
    kind: str  # "cpu"
    isa: str  # "avx512", "avx2" or "generic"
    vector_bytes: int
    vector_registers: int
    fma_per_cycle: float
    loads_per_cycle: float
    cores: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    l3_cores: int
    l1_bytes_per_cycle: float
    l2_bytes_per_cycle: float
    l3_bytes_per_cycle: float
    memory_bytes_per_cycle: float
    clock_mhz: float
    processor: Processor = field(repr=False)
    assumed: tuple[str, ...] = ()

    @property
    def isas(self) -> tuple[str, ...]:
        """Every instruction set that this processor has, widest first."""
        return _isas(self.processor)

    def with_isa(self, isa: str) -> Cpu:
        """The same machine restricted to another instruction set.

        Raises IsaUnavailable if the processor does not have it.
        """
        if isa not in self.isas:
            raise IsaUnavailable(isa, self.isas, self.name)
        return replace(self, **_rates(isa, self.processor))

    def bytes_per_cycle(self, level: str) -> float:
        """What one core sustains from `level`: "l1", "l2", "l3" or "memory"."""
        rates: dict[str, float] = {
            name: getattr(self, f"{name}_bytes_per_cycle") for name in LEVELS
        }
        return rates[level]

    @cached_property
    def fingerprint(self) -> str:
        """The clock is left out: it changes from boot to boot and scales all candidates alike."""
        cpu = self.processor
        sizes = "/".join(str(n // 1024) for n in (self.l1_bytes, self.l2_bytes, self.l3_bytes))
        return (
            f"{self.name} [{cpu.vendor} {cpu.family}.{cpu.model}] {self.isa} "
            f"{sizes}K l3x{self.l3_cores} {self.cores} cores"
        )


@cache
def _current() -> Cpu:
    if hasattr(os, "sched_getaffinity"):
        cpus: Collection[int] = os.sched_getaffinity(0)
    else:
        cpus = range(os.cpu_count() or 1)
    return describe(Path("/"), cpus)


def describe(root: Path, cpus: Collection[int]) -> Cpu:
    """The device whose /proc and /sys lie under `root`, for a process allowed on `cpus`."""
    facts = probe.read(root, cpus)
    assumed = table()["assumed"]
    processor = facts.processor or Processor(
        platform.processor() or assumed["name"], "", 0, 0, frozenset()
    )
    known: dict[str, Any] = {
        "cores": facts.cores,
        "l1_bytes": facts.l1_bytes,
        "l2_bytes": facts.l2_bytes,
        "l3_bytes": facts.l3_bytes,
        "l3_cores": facts.l3_cores,
        "clock_mhz": facts.clock_mhz,
    }
    missing = [name for name, value in known.items() if value is None]
    known.update((name, assumed.get(name, 1)) for name in missing)
    if "l3_bytes" in missing:  # never smaller than the level that backs onto it
        known["l3_bytes"] = max(known["l3_bytes"], known["l2_bytes"])
    if facts.processor is None:
        missing = ["name", "isa", *missing]
    return Cpu(
        name=processor.name,
        kind="cpu",
        processor=processor,
        assumed=tuple(missing),
        **known,
        **_rates(_isas(processor)[0], processor),
    )


@cache
def table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _isas(processor: Processor) -> tuple[str, ...]:
    known = table()["isa"].items()
    return tuple(name for name, row in known if processor.flags.issuperset(row["requires"]))


def _rates(isa: str, processor: Processor) -> dict[str, Any]:
    """The fields of Device that follow from the instruction set and the processor."""
    row = _row(table()["isa"][isa], processor)
    band = _row(table()["bandwidth"], processor)
    return {
        "isa": isa,
        "vector_bytes": row["vector_bytes"],
        "vector_registers": row["vector_registers"],
        "fma_per_cycle": row["fma_per_cycle"],
        "loads_per_cycle": row["loads_per_cycle"],
        "l1_bytes_per_cycle": row["loads_per_cycle"] * row["vector_bytes"],
        "l2_bytes_per_cycle": band["l2"],
        "l3_bytes_per_cycle": band["l3"],
        "memory_bytes_per_cycle": band["memory"],
    }


def _row(row: dict[str, Any], processor: Processor) -> dict[str, Any]:
    """A table row with the exceptions that hold for this processor applied in order."""
    merged = dict(row)
    for exception in row.get("except", ()):
        if _matches(exception, processor):
            merged.update(exception)
    return merged


def _matches(exception: dict[str, Any], processor: Processor) -> bool:
    return (
        exception.get("vendor", processor.vendor) == processor.vendor
        and exception.get("family", processor.family) == processor.family
        and processor.model in exception.get("models", (processor.model,))
        and ("flag" not in exception or exception["flag"] in processor.flags)
    )
