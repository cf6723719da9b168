"""python -m bench.gpu_check: the correctness matrix, predictions and benchmarks on this GPU.

Writes a JSON file and a table beside it. Exit status: 0 all is well, or there is no GPU, which is
said; 1 something is wrong; 2 bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autotune.device import Device
from autotune.errors import NoGpu
from autotune.gpu import Gpu
from autotune.measure_gpu import CudaStream, Stream
from bench import files
from bench.gpu_check import ahead, correctness, cuda_kernels, kernels, layers, sanitizer
from bench.gpu_check.page import faults, page
from flashrnn.runtime import triton_build

FINE, WRONG = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        gpu = Device.current("cuda")
    except NoGpu as error:
        print(f"gpu-check: nothing was checked: {error}")
        return FINE
    if not triton_build.is_installed():
        print("gpu-check: Triton is missing: pip install 'flashrnn-compiler[triton]'")
        return WRONG
    found = check(gpu, CudaStream(gpu.l2_bytes), options.seconds, options.output)
    table = options.output.with_suffix(".md")
    print(table.read_text(encoding="utf-8"))
    print(f"written: {options.output}, {table}; wrong: {faults(found)}")
    return WRONG if faults(found) else FINE


def check(gpu: Gpu, stream: Stream, seconds: float, output: Path) -> dict[str, Any]:
    """All of it. What is found is written after every row, so that nothing is lost."""
    found: dict[str, Any] = {
        "suite": "gpu-check",
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "gpu": _described(gpu),
        "versions": versions(),
        "correctness": asdict(correctness.Outcome(problem="it has not ended yet")),
        "kernels": [],
        "cuda_kernels": [],
        "layers": [],
        "sanitizer": [],
    }

    def save() -> None:
        files.write(output, found)
        files.write_bytes(output.with_suffix(".md"), page(found).encode())

    save()
    ahead.compile_all(gpu, ahead.jobs())
    for kernel in kernels.rows(kernels.problems(), gpu, stream, seconds):
        found["kernels"].append(kernel.facts())
        save()
    for kernel in cuda_kernels.rows(cuda_kernels.problems(), gpu, stream, seconds):
        found["cuda_kernels"].append(kernel.facts())
        save()
    for layer in layers.rows(layers.cases(), stream, seconds):
        found["layers"].append(asdict(layer))
        save()
    found["sanitizer"] = [asdict(outcome) for outcome in sanitizer.run()]
    found["correctness"] = asdict(correctness.run())
    save()
    return found


def versions() -> dict[str, str]:
    """Of what takes part; what is not installed is left out."""
    import torch

    found = {}
    for name in ("flashrnn-compiler", "torch", "triton", "cuda-bindings", "nvidia-cuda-nvrtc"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
    if torch.backends.cudnn.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found


def _described(gpu: Gpu) -> dict[str, Any]:
    """The GPU's limits as they were used, and which of them were probed."""
    return {**asdict(gpu), "sm": gpu.sm, "fingerprint": gpu.fingerprint}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="On a machine with an NVIDIA GPU: the correctness matrix, predictions held "
        "against the compiler and the clock, layers beside cuDNN and a plain loop, and "
        "compute-sanitizer where it is installed.",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=0.5, metavar="S", help="of timing per case (0.5)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu-check.json"), metavar="FILE",
        help="the results; the table goes beside it, as .md (results/gpu-check.json)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
