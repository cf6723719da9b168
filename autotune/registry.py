"""Where kernels come from: the entry-point group, and how another process finds them again."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from autotune.device import Cpu, Device
from autotune.errors import FamilyUnavailable, NoGpuKernels, UnknownKernel
from autotune.gpu import Gpu
from autotune.space import Comparison, Family, GpuFamily, GpuTunable, Options, Rivals, Tunable

GROUP = "autotune.kernels"


def registered() -> dict[str, str]:
    """Name -> "module:attribute" of every kernel family that an installed package registers."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def resolve(kernel: str) -> str:
    """The "module:attribute" of a registered name; a reference of that form is its own.

    Raises UnknownKernel, which lists the registered names.
    """
    if ":" in kernel:
        return kernel
    known = registered()
    if kernel not in known:
        raise UnknownKernel(kernel, list(known))
    return known[kernel]


def load_family(reference: str) -> Family:
    """Call the factory that "module:attribute" names. Raises FamilyUnavailable."""
    module, _, attribute = reference.partition(":")
    try:
        family: Family = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        raise FamilyUnavailable(reference, f"{type(error).__name__}: {error}") from error
    return family


@dataclass(frozen=True)
class Origin:
    """A family with its options, in words that another process can follow.

    `reference` is "module:attribute" of the family's factory; `options` holds JSON-able values,
    "threads" among them, or "device", the name of a GPU, for a problem of its kernels.
    """

    reference: str
    options: Options

    @property
    def threads(self) -> int:
        return int(self.options.get("threads") or 1)

    @property
    def gpu(self) -> Gpu | None:
        """The GPU of the option "device", None where the options are a CPU problem's."""
        name = self.options.get("device")
        return None if name is None else Device.named(str(name))

    def tunables(self) -> list[Tunable[Cpu]]:
        return load_family(self.reference).tunables(self.options)

    def gpu_tunables(self) -> Sequence[GpuTunable]:
        """What the family has for the GPU. Raises NoGpuKernels for a family without such."""
        family, gpu = load_family(self.reference), self.gpu
        if gpu is None or not isinstance(family, GpuFamily):
            raise NoGpuKernels(family.name)
        return family.gpu_tunables(self.options, gpu)

    def every(self) -> Sequence[Tunable[Any]]:
        """What the family has for the device that the options mean."""
        return self.tunables() if self.gpu is None else self.gpu_tunables()

    def rivals(self) -> list[Rivals]:
        """The same, those that answer the same problem together."""
        found: dict[object, dict[int, Tunable[Any]]] = {}
        for number, tunable in enumerate(self.every()):
            found.setdefault(frozenset(tunable.problem().items()), {})[number] = tunable
        return list(found.values())

    def comparisons(self) -> list[Comparison]:
        return load_family(self.reference).comparisons(self.options)
