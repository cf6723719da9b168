"""The table of GPUs, and the probe on the properties that torch would report."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from autotune import gpu
from autotune.cli import main
from autotune.device import Device
from autotune.errors import AutotuneError, NoGpu, UnknownDevice

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=128,
    L2_cache_size=48 << 20,
    shared_memory_per_block_optin=227 << 10,
    regs_per_multiprocessor=65536,
)


@pytest.mark.parametrize("name", gpu.names())
def test_the_listed_tflops_follow_from_the_row(name: str) -> None:
    row = Device.named(name)
    derived = row.sms * row.clock_mhz * 1e6 * row.tensor_flops_per_cycle / 1e12
    assert row.tflops is not None
    assert derived == pytest.approx(row.tflops, rel=0.02)


def test_the_table_knows_what_is_sold() -> None:
    assert {Device.named(name).sm for name in gpu.names()} == {75, 80, 86, 89, 90, 100, 120}
    h100 = Device.named("h100-sxm")
    assert (h100.sm, h100.sms, h100.kind) == (90, 132, "cuda")
    assert h100.architecture.shared_per_block == 227 * 1024
    assert h100 is Device.named("h100-sxm")
    assert len({Device.named(name).fingerprint for name in gpu.names()}) == len(gpu.names())


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("a100", "a100-40-sxm or a100-80-sxm or a100-80-pcie"),
        ("h100-smx", "h100-sxm"),
        ("rtx4090", "rtx-4090"),
    ],
)
def test_an_unknown_name_lists_close_matches(name: str, close: str) -> None:
    with pytest.raises(UnknownDevice, match=f"no GPU is called '{name}'; did you mean {close}"):
        Device.named(name)


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(UnknownDevice, match="called 'zzz'; known: t4, a100") as caught:
        Device.named("zzz")
    assert caught.value.close == ()


def test_the_probe_wins_over_the_table() -> None:
    device = gpu.probed(H100)
    assert (device.key, device.sms, device.l2_bytes) == ("h100-sxm", 128, 48 << 20)
    assert device.clock_mhz == 1830, "the driver did not say"
    assert device.probed == ("sms", "l2_bytes")
    assert device.fingerprint != Device.named("h100-sxm").fingerprint


def test_what_newer_versions_of_torch_say_is_read_too() -> None:
    more = {"clock_rate": 1_980_000, "memory_clock_rate": 2_619_000, "memory_bus_width": 5120}
    device = gpu.probed(SimpleNamespace(**vars(H100), **more))
    assert device.clock_mhz == 1980
    assert device.memory_bytes_per_second == pytest.approx(3.352e12, rel=1e-3)


def test_a_product_that_is_not_listed_is_promised_nothing() -> None:
    other = SimpleNamespace(**{**vars(H100), "name": "NVIDIA GH200", "multi_processor_count": 99})
    device = gpu.probed(other)
    assert (device.key, device.sms, device.sm, device.tflops) == ("cuda", 99, 90, None)
    assert device.clock_mhz == 1620, "the lowest of its architecture"
    assert "not in the table" in device.doubt


def test_an_architecture_without_limits_says_so() -> None:
    old = SimpleNamespace(**{**vars(H100), "name": "Tesla P100", "major": 6})
    with pytest.raises(AutotuneError, match="sm_60; known: sm_75"):
        gpu.probed(old)


def no_cuda(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A torch that finds no GPU, whatever this machine has."""
    torch = SimpleNamespace(
        __version__="9.9",
        version=SimpleNamespace(cuda=version),
        cuda=SimpleNamespace(is_available=lambda: False),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize(
    ("version", "why"),
    [(None, "built without CUDA"), ("13.0", "finds no NVIDIA GPU and driver that it can use")],
)
def test_a_machine_without_a_gpu_says_why(
    monkeypatch: pytest.MonkeyPatch, version: str | None, why: str
) -> None:
    no_cuda(monkeypatch, version)
    for ask in (lambda: Device.current("cuda"), lambda: Device.named("cuda")):
        with pytest.raises(NoGpu, match=f"{why}; kernels can be compiled for a GPU by its name"):
            ask()


def test_devices_lists_the_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_cuda(monkeypatch, None)
    assert main(["devices"]) == 0
    told = capsys.readouterr().out
    assert "GPU: none (torch 9.9 was built without CUDA)" in told
    assert all(name in told for name in gpu.names())


def test_devices_names_the_gpu_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "current", lambda: gpu.probed(H100))
    assert main(["devices"]) == 0
    assert "GPU: NVIDIA H100 SXM, probed: sms, l2_bytes" in capsys.readouterr().out
