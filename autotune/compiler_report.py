"""What the compiler made of a kernel: registers, spills, shared memory, instructions per step.

Read from the machine code, with the disassembler and the object dumper that Triton's wheel ships;
no GPU is needed.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import sass
from autotune.errors import MissingExtra, ToolFailed
from autotune.gpu import Architecture
from autotune.resources import limiting, occupancy
from autotune.sass import Code, Function, Loop
from autotune.space import Compiled

TOOL_SECONDS = 60.0
_RESOURCES = re.compile(r"Function (\S+?):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Report:
    """One compiled kernel. Registers, stack and spills are per thread, shared memory per block.

    `spill_store_bytes` and `spill_load_bytes` are what the instructions move that save registers
    in local memory and fetch them again, each counted once, as ptxas reports it; so are those of
    the main loop in `step`, one iteration of which is one time step of a recurrent kernel.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    function: Function
    compile_seconds: float

    @property
    def code(self) -> Code:
        return self.function.code

    @property
    def step(self) -> Loop | None:
        """The main loop, None where the kernel has none."""
        return self.function.main_loop

    @property
    def spill_store_bytes(self) -> int:
        return self.code.bytes("local store")

    @property
    def spill_load_bytes(self) -> int:
        return self.code.bytes("local load")

    @property
    def spilled(self) -> bool:
        return self.spill_store_bytes + self.spill_load_bytes > 0

    def occupancy(self, limits: Architecture) -> int:
        """Blocks per multiprocessor; 0: this kernel does not launch there."""
        return occupancy(limits, self.threads, self.registers, self.shared_bytes)

    def limiting(self, limits: Architecture) -> str:
        """What binds the occupancy, in words."""
        return limiting(limits, self.threads, self.registers, self.shared_bytes)

    def facts(self) -> dict[str, Any]:
        """JSON-able: the numbers, and instructions by class in total and per step."""
        return {
            "registers": self.registers,
            "stack_bytes": self.stack_bytes,
            "spill_store_bytes": self.spill_store_bytes,
            "spill_load_bytes": self.spill_load_bytes,
            "shared_bytes": self.shared_bytes,
            "threads": self.threads,
            "compile_seconds": self.compile_seconds,
            "instructions": dict(self.code.classes),
            "step": self.step and dict(self.step.code.classes),
            "step_shared_matrix_loads": self.step and self.step.code.mnemonics.get("LDSM", 0),
        }


def report(compiled: Compiled) -> Report:
    """Disassemble a compiled kernel and count.

    Raises MissingExtra where Triton's tools are not installed, ToolFailed where they fail.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.cubin)
        resources = _run("cuobjdump", "--dump-resource-usage", str(cubin))
        text = _run("nvdisasm", "--print-code", str(cubin))
    return from_text(resources, text, compiled.shared_bytes, compiled.threads, compiled.seconds)


def from_text(
    resources: str, text: str, shared_bytes: int, threads: int, compile_seconds: float = 0.0
) -> Report:
    """The report from what cuobjdump and nvdisasm print for a kernel with one entry function.

    `shared_bytes` is the kernel's own figure, which counts what is allocated at launch.
    """
    usage = _RESOURCES.search(resources)
    functions = {function.name: function for function in sass.parse(text)}
    if usage is None or usage[1] not in functions:
        raise ToolFailed("cuobjdump", f"no function with code was found in: {resources[-500:]!r}")
    return Report(
        registers=int(usage[2]),
        stack_bytes=int(usage[3]),
        shared_bytes=max(shared_bytes, int(usage[4])),
        threads=threads,
        function=functions[usage[1]],
        compile_seconds=compile_seconds,
    )


def tools() -> Mapping[str, Path]:
    """The assemblers, cuobjdump and nvdisasm of Triton's wheel. Raises MissingExtra."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        raise MissingExtra("reading compiled GPU kernels", "triton", "triton")
    folder = Path(found.origin).parent / "backends" / "nvidia" / "bin"
    names = ("ptxas", "ptxas-blackwell", "cuobjdump", "nvdisasm")
    return {name: folder / name for name in names}


def tool_version(tool: str) -> str:
    """The version of one of the tools: "13.1.80". Raises MissingExtra, ToolFailed."""
    found = re.search(r"V(\d+\.\d+\.\d+)", _run(tool, "--version"))
    if found is None:
        raise ToolFailed(tool, "it does not tell its version")
    return found[1]


def _run(tool: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [tools()[tool], *arguments],
            capture_output=True, text=True, timeout=TOOL_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(tool, str(error)) from error
    if done.returncode:
        raise ToolFailed(tool, done.stderr.strip()[-500:] or f"exit status {done.returncode}")
    return done.stdout
