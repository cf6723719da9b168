"""A kernel family for the tests: "kernels" that sleep, whose misbehaviour the options choose.

The option "bad" maps sizes to what goes wrong: "2=segfault,3=hang,4=wrong". A run of size n takes
the longer, the further n lies from the option "best".
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from autotune.cache import lookup
from autotune.device import Device
from autotune.space import Check, Comparison, Config, Options, Tunable
from constrint import Model

# Of a run, in seconds: longer than what a busy machine adds to a sleep.
UNIT = 0.002


@dataclass
class ToyRunner:
    size: int
    best: int
    fault: str
    runs: int = 0

    def check(self) -> Check:
        if self.fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "raise":
            raise ArithmeticError(f"size {self.size} divides by zero")
        os.write(1, b"kernels may print\n")
        return Check(
            error={"wrong": 0.5, "nan": float("nan")}.get(self.fault, 1e-7),
            bound=1e-6,
            what=f"error of the toy on {os.environ['OMP_NUM_THREADS']} threads",
        )

    def run(self) -> None:
        self.runs += 1
        if self.fault == "late segfault" and self.runs > 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault in ("wrong", "nan"):
            return  # very fast
        time.sleep(UNIT * (1 + abs(self.size - self.best)))


@dataclass(frozen=True)
class ToyTunable:
    name: str
    options: Options

    def problem(self) -> dict[str, int | str]:
        return {"kernel": self.name, **{k: str(v) for k, v in self.options.items()}}

    def model(self, device: Device) -> Model:
        model = Model(self.name)
        size = model.int_var("size", range(1, 9))
        model.add(size * 2 <= int(self.options["limit"] or 0), name="space")
        return model

    def cost(self, config: Config, device: Device) -> float:
        return 1e-3 * config["size"]

    def default(self, device: Device) -> dict[str, int]:
        return {"size": int(self.options["default"] or 0)}

    def build(self, config: Config) -> None:
        folder = self.options["built"]
        if folder:
            Path(str(folder), str(config["size"])).touch()
        if self.fault(config) == "unbuildable":
            raise RuntimeError("the compiler said no")
        if self.fault(config) == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)

    def load(self, config: Config) -> ToyRunner:
        return ToyRunner(config["size"], int(self.options["best"] or 0), self.fault(config))

    def describe(self, config: Config) -> str:
        return f"size {config['size']}"

    def fault(self, config: Config) -> str:
        faults = dict(part.split("=") for part in str(self.options["bad"]).split(",") if part)
        return faults.get(str(config["size"]), "")


class ToyFamily:
    name = "toy"

    def add_arguments(self, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument("--best", type=int, default=4)
        parser.add_argument("--default", type=int, default=1)
        parser.add_argument("--limit", type=int, default=12)
        parser.add_argument("--bad", default="")
        parser.add_argument("--built", default="")

    def tunables(self, options: Options) -> list[Tunable]:
        if not options["default"]:
            raise ValueError("--default is 0; sizes start at 1")
        return [ToyTunable("toy forward", options)]

    def comparisons(self, options: Options) -> list[Comparison]:
        def crash() -> None:
            os.kill(os.getpid(), signal.SIGSEGV)

        remembered = lookup(self.tunables(options)[0].problem(), Device.current())
        slow = Comparison(
            f"toy {remembered}", lambda: time.sleep(0.005), "peer", lambda: time.sleep(0.015)
        )
        return [slow, Comparison("crashing toy", crash, "peer", lambda: None)]


def family() -> ToyFamily:
    return ToyFamily()
