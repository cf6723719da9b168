"""runtime/cuda_driver.py through cuda-bindings to a driver that only says what it was asked."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashrnn.runtime.cuda_driver import pack

pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")

PROGRAM = """
import json, os, sys
import torch
from flashrnn import BackendError
from flashrnn.runtime.cuda_driver import Function, Shape

class Stream:
    cuda_stream = 0x77

torch.cuda.current_device, torch.cuda.current_stream = lambda: 1, lambda: Stream
for name, (shape, environment) in json.loads(sys.argv[1]).items():
    print(f"[{name}]", flush=True)
    os.environ.update(environment)
    try:
        function = Function(b"\x7fELF and more", "a kernel", Shape(*shape))
        print("holds", function.resident(10), "registers", function.registers,
              "spilled", function.spilled_bytes, flush=True)
        function.launch((16, 3), (7, 5, None, 0.5))
    except BackendError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    for variable in environment:
        del os.environ[variable]
"""
# Threads, bytes of shared memory, cluster, cooperative; and what the driver does otherwise.
CASES = {
    "no driver": ((64, 1000, 1, False), {"FAKE_REFUSES": "cuInit"}),
    "grid": ((64, 1000, 1, True), {}),
    "cluster": ((96, 200_000, 16, False), {}),
    "portable": ((96, 200_000, 8, False), {}),
    "no cluster": ((96, 200_000, 16, False), {"FAKE_HAS_NO_SUCH_CLUSTER": "1"}),
    "cuModuleLoadData": ((64, 1000, 4, False), {"FAKE_REFUSES": "cuModuleLoadData"}),
    "cuFuncSetAttribute": ((64, 1000, 4, False), {"FAKE_REFUSES": "cuFuncSetAttribute"}),
    "cuLaunchKernelEx": ((64, 1000, 4, False), {"FAKE_REFUSES": "cuLaunchKernelEx"}),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, list[str]]:
    """What the driver was asked in each of CASES, and what the program printed: in one process."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).parent / "fake_driver.cpp"
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra",
               "-Werror", str(source), "-o", str(folder / "libcuda.so.1")]  # fmt: skip
    subprocess.run(command, check=True)
    known = os.environ.get("LD_LIBRARY_PATH")
    path = f"{folder}:{known}" if known else str(folder)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)], capture_output=True, text=True,
        env={**os.environ, "LD_LIBRARY_PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^\[(.*)\]\n", done.stdout, flags=re.MULTILINE)[1:]
    return {name: text.splitlines() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_blocks_that_are_resident_at_once(told) -> None:
    """A thread without a context gets the device's own; later calls have one."""
    assert told["grid"] == [
        "cuInit 0",
        "cuDeviceGet 1",
        "cuCtxSetCurrent 0x101",
        "cuModuleLoadData \x7fELF",
        "cuModuleGetFunction 0x200 run",
        "cuFuncSetAttribute 0x300 8 1000",  # MAX_DYNAMIC_SHARED_SIZE_BYTES
        "cuFuncGetAttribute 4 0x300",  # NUM_REGS
        "cuFuncGetAttribute 3 0x300",  # LOCAL_SIZE_BYTES
        "cuOccupancyMaxActiveBlocksPerMultiprocessor 64 1000",
        "holds 20 registers 41 spilled 12",
        "cuLaunchKernelEx grid 16 3 1 block 64 1 1 shared 1000 stream 0x77",
        " cooperative 1",
        " arguments 0x300 7 5 0 0.5",
    ]


def test_clusters(told) -> None:
    assert told["cluster"] == [
        "cuModuleLoadData \x7fELF",
        "cuModuleGetFunction 0x200 run",
        "cuFuncSetAttribute 0x300 8 200000",
        "cuFuncSetAttribute 0x300 14 1",  # NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        "cuFuncGetAttribute 4 0x300",
        "cuFuncGetAttribute 3 0x300",
        "cuOccupancyMaxActiveClusters grid 16 1 1 block 96 1 1 shared 200000 stream (nil)",
        " cluster 16 1 1",
        "holds 48 registers 41 spilled 12",
        "cuLaunchKernelEx grid 16 3 1 block 96 1 1 shared 200000 stream 0x77",
        " cluster 16 1 1",
        " arguments 0x300 7 5 0 0.5",
    ]
    assert "cuFuncSetAttribute 0x300 14 1" not in told["portable"]
    assert "holds 24 registers 41 spilled 12" in told["portable"]
    assert "holds 0 registers 41 spilled 12" in told["no cluster"]


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        ("cuModuleLoadData", "loading a kernel"),
        ("cuFuncSetAttribute", "configuring a kernel"),
        ("cuLaunchKernelEx", "launching 16 x 3 blocks of a kernel"),
    ],
)
def test_a_refusal_says_what_was_asked(told, call, doing) -> None:
    assert told[call][-1] == (
        f"DriverError: the CUDA driver says CUDA_ERROR_ILLEGAL_ADDRESS on {doing} "
        "(64 threads and 1,000 bytes of shared memory per block, clusters of 4)"
    )


def test_a_driver_that_does_not_start(told) -> None:
    assert told["no driver"][-1] == (
        'BackendError: backend="cuda" needs an NVIDIA driver: the CUDA driver says '
        "CUDA_ERROR_ILLEGAL_ADDRESS on initialising it"
    )


def test_fields_of_eight_bytes() -> None:
    x = torch.zeros(3)
    packed = pack((x, None, 7, True, 0.25, float("inf")))
    assert struct.unpack("=4q2d", packed) == (x.data_ptr(), 0, 7, 1, 0.25, float("inf"))
