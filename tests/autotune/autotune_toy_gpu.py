"""A family of toy GPU kernels: a small recurrence in Triton whose misbehaviour the options choose.

The option "bad" maps numbers of warps to what goes wrong: "4=hang,8=raise".
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from autotune_toy import ToyFamily
from host_clock import HostStream

from autotune import serve
from autotune.errors import MissingExtra
from autotune.gpu import Gpu
from autotune.resources import constrain
from autotune.space import Check, Compiled, Config, GpuTunable, Options, Prediction
from constrint import Model

ROWS = 16


def compile_recurrence(sm: int, D: int, warps: int, registers: int | None = None) -> object:
    """Triton's compiled kernel of h = sigmoid(h R + x) for all steps."""
    import autotune_toy_kernels as kernels
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=kernels.recurrence,
        signature={"x": "*bf16", "r": "*bf16", "h": "*bf16", "T": "i32", "D": "constexpr",
                   "ROWS": "constexpr"},
        constexprs={"D": D, "ROWS": ROWS},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)},
    )  # fmt: skip
    options = {"num_warps": warps, "enable_fp_fusion": True}
    if registers is not None:
        options["maxnreg"] = registers
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


@dataclass(frozen=True)
class ToyGpuTunable:
    name: str
    options: Options

    @property
    def head_dim(self) -> int:
        """D; a small part of it at a time in the schedule that always fits."""
        return 32 if self.alternating else int(self.options["head_dim"] or 0)

    @property
    def alternating(self) -> bool:
        return self.name.endswith("alternating")

    def problem(self) -> dict[str, int | str]:
        return {"kernel": "toy recurrence", **{k: str(v) for k, v in self.options.items()}}

    def model(self, device: Gpu) -> Model:
        model = Model(self.name)
        warps = model.int_var("warps", model.powers_of_two(1, 8))
        registers = model.int_var("registers", [32, 128])
        if self.alternating:
            model.int_var("steps", [1])
        D = self.head_dim
        model.add(warps * 32 <= 4 * D, name="threads with work")
        constrain(
            model, device.architecture, threads=32 * warps, registers=registers,
            shared_bytes=2 * D * D + ROWS * D * 2,
        )  # fmt: skip
        return model

    def cost(self, config: Config, device: Gpu) -> float:
        return 1e-3 / config["warps"] + 1e-6 * config["registers"] + self.alternating

    def default(self, device: Gpu) -> dict[str, int]:
        return {"warps": 1, "registers": 128}

    def predict(self, config: Config, device: Gpu) -> Prediction:
        D = self.head_dim
        return Prediction(config["registers"], 2 * D * D + ROWS * D * 2, 32 * config["warps"])

    def compile(self, config: Config, device: Gpu) -> Compiled:
        fault = self.fault(config)
        if fault == "hang":
            children = Path(str(self.options["children"]))
            child = subprocess.Popen(["sleep", "600"])
            children.write_text(str(child.pid))
            time.sleep(600)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "raise":
            raise RuntimeError("the compiler said no")
        D = self.head_dim
        start = time.perf_counter()
        kernel = compile_recurrence(device.sm, D, config["warps"], config["registers"])
        seconds = time.perf_counter() - start
        shared = kernel.metadata.shared + (200 * 1024 if fault == "large" else 0)
        return Compiled(kernel.asm["cubin"], shared, 32 * config["warps"], seconds)

    def build(self, config: Config) -> None:
        raise AssertionError("a GPU kernel is built by its worker")

    def load(self, config: Config) -> ToyGpuRunner:
        assert ("steps" in config) == self.alternating, "a rival's configuration"
        return ToyGpuRunner(config["warps"] << self.alternating, self.fault(config))

    def describe(self, config: Config) -> str:
        words = f"{config['warps']} warps, at most {config['registers']} registers"
        return words + ", step by step" * self.alternating

    def fault(self, config: Config) -> str:
        faults = dict(part.split("=") for part in str(self.options["bad"]).split(",") if part)
        return faults.get(str(config["warps"]), "")


@dataclass
class ToyGpuRunner:
    """Runs nowhere; faster with more warps, twice as fast where the estimate is the worst."""

    warps: int
    fault: str
    runs: int = 0

    def check(self) -> Check:
        return Check(0.5 if self.fault == "wrong" else 0.0, 1e-3, "error of the toy")

    def run(self) -> None:
        self.runs += 1
        time.sleep(0.004 / self.warps)

    def results(self) -> bytes:
        self.run()
        return str(self.runs).encode() if self.fault == "random" else b"same"


class ToyGpuFamily(ToyFamily):
    name = "toy-gpu"

    def add_gpu_arguments(self, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument("--head-dim", type=int, default=32)
        parser.add_argument("--dtype", default="bfloat16")
        parser.add_argument("--bad", default="")
        parser.add_argument("--children", default="")

    def gpu_tunables(self, options: Options, device: Gpu) -> list[GpuTunable]:
        if options["bad"] == "no triton":
            raise MissingExtra("compiling for a GPU", "triton", "triton")
        if not options["head_dim"]:
            raise ValueError("--head-dim is 0; sizes start at 1")
        if options.get("fake"):
            serve.CudaStream = HostStream
        names = ["toy recurrence, fused"]
        if int(options["head_dim"]) > 256 or options.get("rivals"):
            names.append("toy recurrence, alternating")
        return [ToyGpuTunable(name, options) for name in names]


def family() -> ToyGpuFamily:
    return ToyGpuFamily()
