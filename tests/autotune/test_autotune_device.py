"""The probe on made-up machines: a few files stand for /proc and /sys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from autotune.device import Device, describe
from autotune.errors import IsaUnavailable

AVX2 = "fpu sse2 avx fma avx2 bmi2"
AVX512 = AVX2 + " avx512f avx512dq avx512cd avx512bw avx512vl"
Cache = tuple[int, str, str, int]  # level, type, size, logical processors that share it


def machine(
    root: Path,
    cpuinfo: str,
    cpus: int = 4,
    siblings: int = 1,
    caches: Sequence[Cache] = (),
) -> Path:
    """Write a /proc and /sys with `cpus` logical processors, `siblings` per core."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for cpu in range(cpus):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        core = cpu - cpu % siblings
        (folder / "topology/thread_siblings_list").write_text(f"{core}-{core + siblings - 1}\n")
        for index, (level, kind, size, sharing) in enumerate(caches):
            entry = folder / f"cache/index{index}"
            entry.mkdir(parents=True)
            first = cpu - cpu % sharing
            (entry / "level").write_text(f"{level}\n")
            (entry / "type").write_text(f"{kind}\n")
            (entry / "size").write_text(f"{size}\n")
            (entry / "shared_cpu_list").write_text(f"{first}-{first + sharing - 1}\n")
    return root


def x86(kind: tuple[str, int, int], flags: str, name: str, mhz: str = "") -> str:
    vendor, family, model = kind
    clock = f"cpu MHz\t\t: {mhz}\n" if mhz else ""
    return (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\n{clock}flags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: none\n"
    )


ZEN_2 = x86(("AuthenticAMD", 23, 49), AVX2, "AMD EPYC 7402  24-Core Processor", "2794.7")
ZEN_4 = x86(("AuthenticAMD", 25, 17), AVX512, "AMD EPYC 9554", "3100.0")
ICE_LAKE = x86(("GenuineIntel", 6, 106), AVX512, "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz")
TIGER_LAKE = x86(("GenuineIntel", 6, 140), AVX512, "11th Gen Intel(R) Core(TM) @ 2.80GHz")
ARM = (
    "processor\t: 0\nFeatures\t: fp asimd aes\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU part\t: 0xd40\n"
)
SMT_CACHES: list[Cache] = [
    (1, "Data", "32K", 2),
    (1, "Instruction", "64K", 2),
    (2, "Unified", "512K", 2),
    (3, "Unified", "16M", 8),
]


def test_zen_2(tmp_path: Path) -> None:
    device = describe(machine(tmp_path, ZEN_2, 8, 2, SMT_CACHES), range(8))
    assert (device.name, device.isa) == ("AMD EPYC 7402 24-Core Processor", "avx2")
    assert (device.vector_bytes, device.vector_registers) == (32, 16)
    assert (device.fma_per_cycle, device.loads_per_cycle) == (2, 2)
    assert device.cores == 4, "two logical processors of a core are one core"
    assert (device.l1_bytes, device.l2_bytes) == (32 * 1024, 512 * 1024)
    assert (device.l3_bytes, device.l3_cores) == (16 * 2**20, 4)
    assert device.clock_mhz == pytest.approx(2794.7)
    assert device.assumed == ()
    assert device.isas == ("avx2", "generic")


def test_zen_4_runs_wide_vectors_in_halves_and_ice_lake_servers_do_not(tmp_path: Path) -> None:
    zen = describe(machine(tmp_path / "zen", ZEN_4, caches=SMT_CACHES), range(4))
    assert (zen.isa, zen.fma_per_cycle, zen.loads_per_cycle) == ("avx512", 1, 1)
    assert (zen.vector_bytes, zen.vector_registers, zen.l1_bytes_per_cycle) == (64, 32, 64)
    ice = describe(machine(tmp_path / "ice", ICE_LAKE, caches=SMT_CACHES), range(4))
    assert (ice.isa, ice.fma_per_cycle, ice.loads_per_cycle) == ("avx512", 2, 2)
    assert ice.clock_mhz == 2000, "the name tells where cpu MHz is missing"
    client = describe(machine(tmp_path / "tiger", TIGER_LAKE, caches=SMT_CACHES), range(4))
    assert (client.fma_per_cycle, client.loads_per_cycle) == (1, 2)


def test_arm_without_avx(tmp_path: Path) -> None:
    caches: list[Cache] = [(1, "Data", "64K", 1), (2, "Unified", "16M", 1)]
    device = describe(machine(tmp_path, ARM, caches=caches), range(4))
    assert (device.isa, device.vector_bytes, device.vector_registers) == ("generic", 16, 32)
    assert (device.fma_per_cycle, device.loads_per_cycle) == (2, 2)
    assert "0x41" in device.name and "0xd40" in device.name
    assert (device.l1_bytes, device.l2_bytes) == (64 * 1024, 16 * 2**20)
    assert set(device.assumed) == {"l3_bytes", "l3_cores", "clock_mhz"}
    assert device.l3_bytes >= device.l2_bytes


def test_nothing_to_read(tmp_path: Path) -> None:
    device = describe(tmp_path, range(2))
    assert (device.isa, device.cores) == ("generic", 2)
    assert {"name", "isa", "l1_bytes", "l2_bytes", "l3_bytes", "clock_mhz"} <= set(device.assumed)
    assert 0 < device.l1_bytes <= device.l2_bytes <= device.l3_bytes


def test_garbage_is_not_believed(tmp_path: Path) -> None:
    root = machine(tmp_path, ZEN_2.replace("2794.7", "fast"), caches=[(1, "Data", "many", 1)])
    device = describe(root, range(4))
    assert {"l1_bytes", "clock_mhz"} <= set(device.assumed)


def test_the_caches_are_those_of_a_processor_we_may_use(tmp_path: Path) -> None:
    root = machine(tmp_path, ZEN_2, 4, 1, [(1, "Data", "32K", 1)])
    (root / "sys/devices/system/cpu/cpu3/cache/index0/size").write_text("48K\n")
    assert describe(root, {3}).l1_bytes == 48 * 1024
    assert describe(root, {3}).cores == 1


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 4),
        ("3:memory:/\n1:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1"}, 4),
    ],
)
def test_cgroup_quota(tmp_path: Path, cgroup: str, files: dict[str, str], cores: int) -> None:
    root = machine(tmp_path, ZEN_2)
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        (path.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert describe(root, range(4)).cores == cores


def test_with_isa(tmp_path: Path) -> None:
    zen = describe(machine(tmp_path, ZEN_4, caches=SMT_CACHES), range(4))
    narrow = zen.with_isa("avx2")
    assert (narrow.isa, narrow.vector_bytes, narrow.vector_registers) == ("avx2", 32, 16)
    assert (narrow.fma_per_cycle, narrow.loads_per_cycle) == (2, 2)
    assert narrow.l1_bytes == zen.l1_bytes
    assert narrow.fingerprint != zen.fingerprint
    assert narrow.with_isa("avx512") == zen
    with pytest.raises(IsaUnavailable, match="avx512, avx2, generic"):
        zen.with_isa("amx")


def test_a_machine_without_avx512_cannot_be_asked_for_it(tmp_path: Path) -> None:
    device = describe(machine(tmp_path, ZEN_2), range(4))
    with pytest.raises(IsaUnavailable, match=r"7402.*'avx512'.*avx2, generic"):
        device.with_isa("avx512")


def test_fingerprint_tells_machines_apart_but_not_clocks(tmp_path: Path) -> None:
    def of(name: str, cpuinfo: str, cpus: int = 4) -> str:
        return describe(
            machine(tmp_path / name, cpuinfo, caches=SMT_CACHES), range(cpus)
        ).fingerprint

    reference = of("a", ZEN_2)
    assert of("b", ZEN_2.replace("2794.7", "1500.0")) == reference
    assert of("c", ZEN_2, cpus=2) != reference
    assert of("d", ZEN_4) != reference
    assert "\n" not in reference and len(reference) < 200


def test_this_machine() -> None:
    device = Device.current()
    assert device is Device.current()
    assert device.cores >= 1 and device.clock_mhz > 100
    assert device.isas[-1] == "generic"
