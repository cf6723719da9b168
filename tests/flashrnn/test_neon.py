"""64-bit ARM: the kernels as the library's own toolchain cross-compiles them, under emulation.

Every cell runs forward (both schedules of a layer) and backward on 128-bit NEON vectors in a
process of `qemu-aarch64`, and is held to the float64 reference.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import (
    Tensors,
    assert_close,
    cast,
    composed,
    cotangents,
    every_cell,
    layer_problem,
    results,
)

from autotune.device import Device, describe
from flashrnn.dims import Dims
from flashrnn.dtypes import BY_NAME, Dtype
from flashrnn.emit.cpp import BACKWARD, FORWARD, emit_layer
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.build import build
from flashrnn.runtime.kernels import source_of
from flashrnn.tiling.cpu import CpuProblem, default

CPUINFO = "processor: 0\nFeatures: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd0c\n"
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"
B, T, N, D, I = 5, 6, 2, 11, 7
STEPS = 4  # of a piece of the layer
LENGTHS = (6, 0, 3, 1, 5)

# Loads what surrounds a recurrence in both directions, then the driver of a cell, which calls it.
MAIN = """
#include <dlfcn.h>
#include <cstdio>
int main(int, char** argv) {
  for (int i = 1; i <= 2; ++i)
    if (dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL) == nullptr) return std::puts(dlerror()), 1;
  void* driver = dlopen(argv[3], RTLD_NOW);
  if (driver == nullptr) return std::puts(dlerror()), 1;
  reinterpret_cast<void (*)(const char*, const char*)>(dlsym(driver, "drive"))(argv[4], argv[5]);
}
"""


@dataclass(frozen=True)
class Target:
    """A machine to compile for. launch: the words before its executable's own."""

    device: Device
    compiler: str
    launch: tuple[str, ...]

    def link(self, folder: Path) -> None:
        """Leave folder/main, which loads a driver and runs it."""
        (folder / "main.cpp").write_text(MAIN)
        command = [self.compiler, str(folder / "main.cpp"), "-o", str(folder / "main"), "-ldl"]
        subprocess.run(command, check=True, timeout=120)


@pytest.fixture(params=["this machine, 128 bits", "NEON"])
def target(request, tmp_path, monkeypatch) -> Target:
    if request.param != "NEON":
        return Target(Device.current().with_isa("generic"), "c++", ())
    for program, package in ((CROSS, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian and Ubuntu: apt install {package})")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    device = describe(tmp_path, range(4))
    assert (device.vector_bytes, device.vector_registers) == (16, 32)
    monkeypatch.setenv("CXX", CROSS)
    return Target(device, CROSS, (EMULATOR, "-L", SYSROOT))


def source(cell: Cell, dtype: Dtype, device: Device) -> str:
    """The emitted kernels, each in a namespace, and the driver behind them."""
    text = '#include "cpu/layer_forward.hpp"\n#include "cpu/layer_backward.hpp"\n'
    text += "using namespace flashrnn;\n"
    for direction in (FORWARD, BACKWARD):
        problem = CpuProblem(lower(cell), direction, dtype, Dims(B, T, N, D), 1)
        emitted = source_of(problem, default(problem, device), device)
        for entry in ("run", "workspace"):
            emitted = emitted.replace(f"flashrnn_{entry}(", f"{direction}_{entry}(")
        text += f"namespace {direction}_kernel {{\n{emitted}\n}}\n"
    return text + Path(__file__).with_name("driver.cpp").read_text()


def drive(
    command: list[str | Path], folder: Path, cell: Cell, inputs: Tensors, options: dict
) -> Tensors:
    """What the driver's command computes, and its gradients, named as `results` names them."""
    dtype = inputs["x"].dtype
    empty, dense = torch.zeros(0), cell.recurrence == DENSE
    per_unit = [x for x in (None if dense else inputs["R"], inputs.get("parameters"))
                if x is not None]  # fmt: skip
    d_states, d_last = cotangents(
        torch.empty(len(cell.states), B, steps, N, D, dtype=dtype) for steps in (T, 1)
    )
    numbers = (inputs["x"], inputs["W"], inputs["R"] if dense else empty, inputs["b"],
               torch.cat(per_unit) if per_unit else empty, inputs["states"],
               d_states, d_last)  # fmt: skip
    some = "lengths" in options
    sizes = [B, T, N, D, I, STEPS, 4, int(options.get("reverse", False)), int(some)]
    with (folder / "in").open("wb") as file:
        file.write(np.array([*sizes, *LENGTHS], np.int64).tobytes())
        for x in numbers:
            file.write(x.detach().double().numpy().tobytes())
    files = [folder / "in", folder / "out"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = torch.from_numpy(np.fromfile(folder / "out")).to(dtype)
    weights = ["d_x", "d_W", "d_R", "d_b"] if dense else ["d_x", "d_W", "d_b", "d_R"]
    weights += ["d_parameters"] if cell.parameters else []
    shapes = {"states": d_states.shape, "last": d_last.shape}
    shapes |= {name: inputs[name[2:]].shape for name in (*weights, "d_states")}
    pieces = found.split([shape.numel() for shape in shapes.values()])
    return {name: x.view(shapes[name]) for name, x in zip(shapes, pieces, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=BY_NAME)
def test_kernels_on_128_bits(target, dtype, tmp_path) -> None:
    """Both targets run the same driver, so a wrong driver is not taken for a wrong machine."""
    target.link(tmp_path)
    layers = []
    for direction in (FORWARD, BACKWARD):
        text = emit_layer(dtype, direction, vector_bytes=target.device.vector_bytes)
        layers.append(build(f"layer-{direction}-{dtype.name}", text, target.device))
    for cell in every_cell() if target.launch else every_cell()[:1]:
        text = source(cell, dtype, target.device)
        driver = build(f"driver-{cell.name}-{dtype.name}", text, target.device)
        command = [*target.launch, tmp_path / "main", *layers, driver]
        p = layer_problem(cell, B, T, N, D, I, dtype.torch)
        for options in ({}, {"reverse": True, "lengths": torch.tensor(LENGTHS)}):
            got = drive(command, tmp_path, cell, p, options)
            exact, eager = (
                results(lambda a, c=cell, o=options: composed(c, **a, **o), inputs)
                for inputs in (cast(p, torch.float64), p)
            )
            assert_close(got, exact, eager, cell.name)
