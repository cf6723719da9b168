"""NVIDIA GPUs as kernels are compiled for them: the limits of devices.toml, and the probe.

An architecture is what all GPUs of a compute capability share; a GPU adds the counts and rates of
one product. Nothing here needs a GPU except `current`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from autotune.device import Device, table
from autotune.errors import NoGpu, UnknownArchitecture, UnknownDevice

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Architecture:
    """The limits of one compute capability. Sizes in bytes, rates per clock cycle and SM.

    `shared_carveouts` are the sizes that shared memory can have of the `unified_bytes` that it
    has in common with L1, ascending; `shared_per_block` is the largest block's, after opting in,
    of which `shared_reserved` is not counted. Registers are 32 bits wide and allocated per warp in
    multiples of `register_granule`, for warps in multiples of `warp_granule`. `cluster_blocks` is
    the most blocks that a cluster can have, 1 where there are no clusters.
    """

    sm: int  # 10 x compute capability: 90 for Hopper
    warps_per_sm: int
    blocks_per_sm: int
    barriers_per_sm: int
    threads_per_block: int
    registers_per_sm: int
    registers_per_block: int
    registers_per_thread: int
    register_granule: int
    warp_granule: int
    unified_bytes: int
    shared_carveouts: tuple[int, ...]
    shared_per_block: int
    shared_reserved: int
    shared_granule: int
    cluster_blocks: int
    fp32_fma_per_cycle: int
    special_per_cycle: int
    shared_bytes_per_cycle: int

    @property
    def shared_per_sm(self) -> int:
        return self.shared_carveouts[-1]


@dataclass(frozen=True)
class Gpu(Device):
    """An NVIDIA GPU, of the table or probed. Rates per clock cycle and SM.

    `tensor_flops_per_cycle` is dense fp16 or bf16 with float32 accumulation (tf32: half of it);
    `tflops` the manufacturer's figure for it, None for a GPU that the table does not list.
    `probed` names the fields that the machine told; the others are the table's.
    """

    key: str  # "h100-sxm", what `named` takes; "cuda" for one that the table does not list
    name: str
    architecture: Architecture = field(repr=False)
    sms: int
    clock_mhz: float
    tensor_flops_per_cycle: float
    memory_bytes_per_second: float
    l2_bytes: int
    tflops: float | None = None
    doubt: str = ""
    probed: tuple[str, ...] = ()
    kind: str = "cuda"

    @property
    def sm(self) -> int:
        return self.architecture.sm

    @cached_property
    def fingerprint(self) -> str:
        """The same for a GPU of the table and for the real one, where the probe agrees."""
        return f"{self.key} sm_{self.sm} {self.sms} SMs {self.l2_bytes // MIB}M L2"


def architectures() -> tuple[int, ...]:
    """Every compute capability of the table, times 10."""
    return tuple(int(sm) for sm in table()["sm"] if sm != "all")


@cache
def architecture(sm: int) -> Architecture:
    """The limits of compute capability `sm` / 10. Raises UnknownArchitecture."""
    rows = table()["sm"]
    if str(sm) not in rows:
        raise UnknownArchitecture(sm, architectures())
    own = rows[str(sm)]
    row = {**rows["all"], **rows.get(str(own.get("like")), {}), **own}
    row.pop("like", None)
    return Architecture(
        sm=sm,
        unified_bytes=row.pop("unified_kib") * KIB,
        shared_carveouts=tuple(size * KIB for size in row.pop("carveouts_kib")),
        shared_per_block=row.pop("shared_kib_per_block") * KIB,
        **row,
    )


def names() -> tuple[str, ...]:
    """Every GPU of the table, oldest architecture first."""
    return tuple(table()["gpu"])


@cache
def named(name: str) -> Gpu:
    """A GPU of the table. Raises UnknownDevice, which lists close matches."""
    rows = table()["gpu"]
    if name not in rows:
        close = [known for known in rows if known.startswith(name)]
        raise UnknownDevice(
            name, close or difflib.get_close_matches(name, rows, n=4, cutoff=0.5), list(rows)
        )
    row = rows[name]
    return Gpu(
        key=name,
        name=row["name"],
        architecture=architecture(row["sm"]),
        sms=row["sms"],
        clock_mhz=row["clock_mhz"],
        tensor_flops_per_cycle=row["tensor_flops_per_cycle"],
        memory_bytes_per_second=row["memory_gb_per_s"] * 1e9,
        l2_bytes=row["l2_mib"] * MIB,
        tflops=row["tflops"],
        doubt=row.get("doubt", ""),
    )


def current() -> Gpu:
    """The GPU that torch uses at present, probed; the probe wins over the table.

    Raises NoGpu where torch is missing, was built without CUDA or finds no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise NoGpu(f"torch cannot be imported: {error}") from error
    if torch.version.cuda is None:
        raise NoGpu(f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise NoGpu(f"torch {torch.__version__} finds no NVIDIA GPU and driver that it can use")
    return probed(torch.cuda.get_device_properties(torch.cuda.current_device()))


def probed(properties: Any) -> Gpu:
    """The GPU that `torch.cuda.get_device_properties` describes, completed from the table.

    A product that the table does not list has its rates from the listed ones of its
    architecture: the lowest of each, so that nothing is promised.
    """
    sm = 10 * properties.major + properties.minor
    facts = _facts(properties)
    rows = table()["gpu"]
    for key, row in rows.items():
        if properties.name in row["torch_names"] and row["sm"] == sm:
            known = named(key)
            break
    else:
        known = _unlisted(properties.name, sm)
    limits = replace(known.architecture, **_limits(properties))
    return replace(known, architecture=limits, **facts, probed=tuple(facts))


def _facts(properties: Any) -> dict[str, Any]:
    """What the driver says of the product."""
    facts: dict[str, Any] = {"sms": properties.multi_processor_count}
    if getattr(properties, "L2_cache_size", 0):
        facts["l2_bytes"] = properties.L2_cache_size
    clock_khz = getattr(properties, "clock_rate", 0)
    if clock_khz:
        facts["clock_mhz"] = clock_khz / 1e3
    memory_khz = getattr(properties, "memory_clock_rate", 0)
    width_bits = getattr(properties, "memory_bus_width", 0)
    if memory_khz and width_bits:  # two transfers per clock
        facts["memory_bytes_per_second"] = 2 * memory_khz * 1e3 * width_bits / 8
    return facts


def _limits(properties: Any) -> dict[str, Any]:
    """What the driver says of the architecture, under the names of `Architecture`."""
    names = {
        "shared_memory_per_block_optin": "shared_per_block",
        "regs_per_multiprocessor": "registers_per_sm",
    }
    return {
        ours: getattr(properties, theirs)
        for theirs, ours in names.items()
        if getattr(properties, theirs, 0)
    }


def _unlisted(name: str, sm: int) -> Gpu:
    """A product of a known architecture that the table does not list."""
    listed = [named(key) for key in names()]
    siblings = [gpu for gpu in listed if gpu.sm == sm] or [
        g for g in listed if g.sm // 10 == sm // 10
    ]
    siblings = siblings or listed
    return Gpu(
        key="cuda",
        name=name,
        architecture=architecture(sm),
        sms=1,  # the probe always tells
        clock_mhz=min(gpu.clock_mhz for gpu in siblings),
        tensor_flops_per_cycle=min(gpu.tensor_flops_per_cycle for gpu in siblings),
        memory_bytes_per_second=min(gpu.memory_bytes_per_second for gpu in siblings),
        l2_bytes=min(gpu.l2_bytes for gpu in siblings),
        doubt="not in the table: rates are the lowest of its architecture's products",
    )
