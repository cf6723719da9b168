"""The measuring process: compiles, loads, checks and times candidates for its parent.

One JSON object per line on standard input, one answer per line on what was standard output (what a
kernel prints there is dropped, so that it cannot disturb the conversation). The number of the
candidate that is running stands in a shared slot of memory: whoever has to kill this process reads
there which one it was.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from autotune import measure_gpu
from autotune.cache import remember_here
from autotune.measure import Timing, interleave
from autotune.measure_gpu import CudaStream, Stream
from autotune.registry import Origin
from autotune.space import Check, Config, GpuRunner, Runner

NOBODY = -1
SLOT_BYTES = 8
MIN_ROUNDS = 3
Message = dict[str, Any]


class Server:
    """Answers requests about the tunables of one family."""

    def __init__(self, start: Message) -> None:
        self.origin = Origin(start["reference"], start["options"])
        with Path(start["slot"]).open("r+b") as file:
            self.slot = memoryview(mmap.mmap(file.fileno(), SLOT_BYTES)).cast("q")
        for problem, fingerprint, config in start["remembered"]:
            remember_here(problem, fingerprint, config)
        self.gpu = self.origin.gpu
        self.tunables = self.origin.every()
        self.runners: dict[int, Runner] = {}

    @cached_property
    def stream(self) -> Stream | None:
        """Where candidates run that are timed on a GPU."""
        return None if self.gpu is None else CudaStream(self.gpu.l2_bytes)

    def answer(self, request: Message) -> Message:
        actions: dict[str, Callable[[Message], Message]] = {
            "check": self.check,
            "compile": self.compile,
            "time": self.time,
            "comparisons": self.labels,
            "compare": self.compare,
        }
        self.slot[0] = NOBODY
        return actions[request["op"]](request)

    def compile(self, request: Message) -> Message:
        """Compile a candidate for its origin's GPU, which need not be there."""
        origin = Origin(request["reference"], request["options"])
        gpu, tunable = origin.gpu, origin.gpu_tunables()[request["index"]]
        assert gpu is not None, "else it had no tunables"
        made = tunable.compile(request["config"], gpu)
        cubin = base64.b64encode(made.cubin).decode("ascii")
        return {**asdict(made), "cubin": cubin}

    def check(self, request: Message) -> Message:
        """Load a candidate, compare it with the reference, and time one warm run."""
        candidate = request["candidate"]
        self.slot[0] = candidate
        runner = self.runner(candidate, request["index"], request["config"])
        check = self.verified(runner)
        if not check.ok:
            del self.runners[candidate]
            seconds = 0.0
        else:
            runner.run()
            seconds = self.once(runner.run)
        # plain numbers: a kernel may well hand over its array library's scalars
        error, bound = float(check.error), float(check.bound)
        return {"error": error, "bound": bound, "what": check.what, "seconds": seconds}

    def time(self, request: Message) -> Message:
        """Time candidates interleaved; those not asked for any more are let go."""
        wanted: list[tuple[int, int, Config]] = request["candidates"]
        for candidate in self.runners.keys() - {at for at, _, _ in wanted}:
            del self.runners[candidate]
        timed = {at: self.marked(at, self.runner(at, of, config)) for at, of, config in wanted}
        seconds = request["seconds"]
        if self.stream is None:
            timings = interleave(timed, seconds=seconds, min_rounds=MIN_ROUNDS)
        else:
            timings = measure_gpu.interleave(
                timed, self.stream, seconds=seconds, min_rounds=MIN_ROUNDS
            )
        return {"timings": [[at, timing.samples] for at, timing in timings.items()]}

    def labels(self, request: Message) -> Message:
        return {"comparisons": [[c.label, c.peer] for c in self.origin.comparisons()]}

    def compare(self, request: Message) -> Message:
        comparison = self.origin.comparisons()[request["index"]]
        timings: dict[str, Timing] = interleave(
            {"ours": comparison.ours, "theirs": comparison.theirs}, seconds=request["seconds"]
        )
        return {name: timing.samples for name, timing in timings.items()}

    def once(self, run: Callable[[], None]) -> float:
        """Seconds of one run."""
        if self.stream is not None:
            return measure_gpu.once(run, self.stream)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def verified(self, runner: Runner) -> Check:
        if self.stream is None:
            return runner.check()
        return measure_gpu.verify(cast("GpuRunner", runner), self.stream)

    def runner(self, candidate: int, of: int, config: Config) -> Runner:
        if candidate not in self.runners:
            self.slot[0] = candidate
            self.runners[candidate] = self.tunables[of].load(config)
        return self.runners[candidate]

    def marked(self, candidate: int, runner: Runner) -> Callable[[], None]:
        """The run of a candidate that leaves its number in the slot (some ten nanoseconds)."""
        slot, run = self.slot, runner.run

        def marked_run() -> None:
            slot[0] = candidate
            run()

        return marked_run


def main() -> None:
    """Serve until standard input closes, which also ends a candidate that is running then."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    server: Server | None = None
    while True:
        request = requests.get()
        try:
            if server is None:
                server = Server(request)
                answer: Message = {"ready": True}
            else:
                answer = server.answer(request)
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(requests: queue.SimpleQueue[Message]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)
