"""What a block of threads takes of a multiprocessor, and how many blocks fit on one.

The rules are those of CUDA's occupancy calculator (`cuda_occupancy.h`), against which a test fuzzes
them. They are written once, in operations that integers and constrint's expressions share, so that
`occupancy` computes what `constrain` demands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from autotune.gpu import Architecture, Gpu, architecture
from constrint import Expression, Model, largest_of, smallest_of
from constrint.expression import Operand

WARP = 32
BARRIERS_PER_BLOCK = 16  # PTX ISA, bar.sync: barriers 0 to 15
POOLED_BARRIERS = 90  # from this architecture on, the residents take barriers from one pool


@dataclass(frozen=True)
class Limit:
    """`used` of `allowed` is taken; `what` names the quantity and its unit."""

    what: str
    used: Operand
    allowed: Operand


def occupancy(
    sm: int | Architecture,
    threads: int,
    registers: int,
    shared_bytes: int,
    *,
    barriers: int = 1,
    carveout: int | None = None,
) -> int:
    """Blocks that reside on one multiprocessor at once; 0: the kernel does not launch.

    sm: 10 x compute capability, or its limits. threads: per block. registers: per thread.
    shared_bytes: static and dynamic, per block. carveout: bytes of shared memory that are asked
    for, None for the most; the next larger step is given, or what one block needs if that is more.

    Raises UnknownArchitecture, and ValueError for numbers that no kernel has.
    """
    if threads < 1 or registers < 0 or shared_bytes < 0 or barriers < 0:
        raise ValueError(
            f"a block of {threads} threads with {registers} registers each, {shared_bytes} bytes "
            f"of shared memory and {barriers} barriers cannot exist"
        )
    limits = architecture(sm) if isinstance(sm, int) else sm
    if any(x.used > x.allowed for x in _launch(limits, threads, registers, shared_bytes, barriers)):
        return 0
    shared = _carveout(limits, shared_bytes, carveout)
    counts = resident(limits, threads, registers, shared_bytes, barriers, shared)
    return min(cast("int", count) for count in counts.values())


def most_registers(sm: int | Architecture, threads: int) -> int:
    """The most registers that each thread of a block can have for the block to launch.

    sm, threads: as in `occupancy`. Raises UnknownArchitecture.
    """
    limits = architecture(sm) if isinstance(sm, int) else sm
    warps = _up(_up(threads, WARP) // WARP, limits.warp_granule)
    assert isinstance(warps, int)
    granules = limits.registers_per_block // warps // limits.register_granule
    return min(granules * limits.register_granule // WARP, limits.registers_per_thread)


def limiting(
    sm: int | Architecture, threads: int, registers: int, shared_bytes: int, *, barriers: int = 1
) -> str:
    """What keeps another block off the multiprocessor, or the block from launching, in words."""
    limits = architecture(sm) if isinstance(sm, int) else sm
    for limit in _launch(limits, threads, registers, shared_bytes, barriers):
        if limit.used > limit.allowed:
            return f"{limit.what}: {limit.used:,} of {limit.allowed:,}"
    counts = resident(limits, threads, registers, shared_bytes, barriers, limits.shared_per_sm)
    return min(counts, key=lambda what: counts[what])


def constrain(
    model: Model,
    sm: int | Architecture,
    *,
    threads: Operand,
    registers: Operand,
    shared_bytes: Operand,
    barriers: Operand = 1,
    blocks: Operand = 1,
    carveout: Operand | None = None,
) -> None:
    """Demand of `model` that the block launches and that `blocks` of them reside on one SM.

    Units as in `occupancy`; every argument is a number or an expression over the model's
    variables. `carveout` may be a variable over the architecture's `shared_carveouts`, whose
    complement is L1; without it shared memory is as large as it can be. Each rule is named, so
    that the model can say which one binds.
    """
    limits = architecture(sm) if isinstance(sm, int) else sm
    for limit in _launch(limits, threads, registers, shared_bytes, barriers):
        fixed = isinstance(limit.used, int)  # then the rule is true or false, and the name tells
        told = f"{limit.what}: {limit.used:,} of {limit.allowed:,}" if fixed else limit.what
        model.add(limit.used <= limit.allowed, name=told)
    shared = limits.shared_per_sm if carveout is None else carveout
    counts = resident(limits, threads, registers, shared_bytes, barriers, shared)
    for what, count in counts.items():
        model.add(count >= blocks, name=f"blocks per SM by {what}")


def constrain_l2(
    model: Model, gpu: Gpu, block_bytes: Operand, grid: Operand, blocks: Operand
) -> None:
    """Demand that what the resident blocks read again and again stays in the L2 cache.

    block_bytes: of one block; grid: blocks in all; blocks: residents per multiprocessor.
    """
    at_once = smallest_of(grid, blocks * gpu.sms)
    model.add(block_bytes * at_once <= gpu.l2_bytes, name="working set in L2 (bytes)")


def l1_bytes(limits: Architecture, carveout: int) -> int:
    """What is left to the L1 cache when shared memory is given `carveout` bytes."""
    return limits.unified_bytes - carveout


def resident(
    limits: Architecture,
    threads: Operand,
    registers: Operand,
    shared_bytes: Operand,
    barriers: Operand,
    carveout: Operand,
) -> dict[str, Operand]:
    """How many blocks each resource of one multiprocessor could hold, if a block launches."""
    warps = _up(threads, WARP) // WARP
    # Each of the four partitions of a multiprocessor has a quarter of the registers, for whole
    # warps of its own.
    partitions = limits.warp_granule
    warps_by_registers = partitions * (
        limits.registers_per_sm // partitions // _per_warp(limits, registers)
    )
    shared = _larger(
        _up(shared_bytes + limits.shared_reserved, limits.shared_granule), limits.shared_granule
    )
    counts: dict[str, Operand] = {
        "registers": warps_by_registers // warps,
        "warps": limits.warps_per_sm // warps,
        "shared memory": carveout // shared,
        "blocks": limits.blocks_per_sm,
    }
    if limits.sm >= POOLED_BARRIERS:
        counts["barriers"] = limits.barriers_per_sm // _larger(barriers, 1)
    return counts


def _launch(
    limits: Architecture,
    threads: Operand,
    registers: Operand,
    shared_bytes: Operand,
    barriers: Operand,
) -> list[Limit]:
    """What must hold for a single block to launch."""
    # The hardware checks a block's registers as if its warps filled all partitions evenly.
    warps = _up(_up(threads, WARP) // WARP, limits.warp_granule)
    return [
        Limit("threads per block", threads, limits.threads_per_block),
        Limit("registers per thread", registers, limits.registers_per_thread),
        Limit(
            "registers per block", _per_warp(limits, registers) * warps, limits.registers_per_block
        ),
        Limit("shared memory per block (bytes)", shared_bytes, limits.shared_per_block),
        Limit("barriers per block", barriers, BARRIERS_PER_BLOCK),
    ]


def _carveout(limits: Architecture, shared_bytes: int, asked: int | None) -> int:
    """The step that the driver chooses for one kernel that launches."""
    if asked is None:
        return limits.shared_per_sm
    needed = _up(shared_bytes + limits.shared_reserved, limits.shared_granule)
    given = min(
        (step for step in limits.shared_carveouts if step >= asked), default=limits.shared_per_sm
    )
    if given >= needed:
        return given
    return min(step for step in limits.shared_carveouts if step >= needed)


def _per_warp(limits: Architecture, registers: Operand) -> Operand:
    return _up(WARP * _larger(registers, 1), limits.register_granule)


def _up(x: Operand, multiple: int) -> Operand:
    """The next multiple that is not smaller."""
    return (x + (multiple - 1)) // multiple * multiple


def _larger(x: Operand, least: int) -> Operand:
    return largest_of(x, least) if isinstance(x, Expression) else max(x, least)
