"""Run candidates in a process of their own, which can crash or hang without harm.

The worker restarts by itself: a request after a failure starts a new process.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any

from autotune.errors import WorkerFailed
from autotune.measure import Timing
from autotune.registry import Origin
from autotune.serve import NOBODY, SLOT_BYTES, Message
from autotune.space import Candidate, Check, Compiled, Config, Problem

START_SECONDS = 120.0  # importing a large library from a cold disk
STDERR_TAIL = 2000


class Worker:
    """The measuring process of what `origin` makes; use as a context manager.

    `remembered` holds (problem, device fingerprint, configuration): answers that the process
    must find even where the cache directory cannot be written.
    """

    def __init__(
        self,
        origin: Origin,
        remembered: Sequence[tuple[Problem, str, Config]] = (),
    ) -> None:
        self._origin = origin
        self._remembered = remembered
        self._process: subprocess.Popen[str] | None = None
        self._ready = False
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._files = ExitStack()
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by _files
        slot = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._errors = self._files.enter_context(errors)
        self._slot_file = self._files.enter_context(slot)
        self._slot_file.truncate(SLOT_BYTES)
        self._slot = memoryview(mmap.mmap(self._slot_file.fileno(), SLOT_BYTES)).cast("q")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._files.close()

    def start(self) -> None:
        """Start the process without waiting for it; requests start it too where needed."""
        if self._process is not None:
            return
        threads = str(self._origin.threads)
        # The path is handed over whole: a process started with -c would look into the current
        # directory first, where any file could shadow a module.
        code = f"import sys; sys.path[:] = {sys.path!r}; from autotune.serve import main; main()"
        self._slot[0] = NOBODY
        self._errors.seek(0)
        self._errors.truncate()
        self._answers = queue.SimpleQueue()
        self._ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C is for the parent, which keeps the best so far
        )
        threading.Thread(
            target=_listen, args=(self._process.stdout, self._answers), daemon=True
        ).start()
        self._send(
            {
                "reference": self._origin.reference,
                "options": dict(self._origin.options),
                "slot": self._slot_file.name,
                "remembered": [[dict(p), name, dict(c)] for p, name, c in self._remembered],
            }
        )

    def compile(self, origin: Origin, index: int, config: Config, timeout: float) -> Compiled:
        """A candidate of tunable number `index` of any origin, compiled for the origin's GPU."""
        what = {"reference": origin.reference, "options": dict(origin.options), "index": index}
        request = {"op": "compile", **what, "config": dict(config)}
        answer = self._request(request, timeout)
        return Compiled(**{**answer, "cubin": base64.b64decode(answer["cubin"])})

    def check(self, at: int, candidate: Candidate, timeout: float) -> tuple[Check, float]:
        """Candidate number `at`'s check, and the seconds of one warm run if it passed."""
        request = {"op": "check", "candidate": at, "index": candidate.of}
        answer = self._request({**request, "config": candidate.config}, timeout)
        return Check(answer["error"], answer["bound"], answer["what"]), answer["seconds"]

    def time(
        self, candidates: Mapping[int, Candidate], seconds: float, timeout: float
    ) -> dict[int, Timing]:
        """Time the candidates interleaved for about `seconds` in all."""
        listed = [[at, candidate.of, candidate.config] for at, candidate in candidates.items()]
        answer = self._request({"op": "time", "candidates": listed, "seconds": seconds}, timeout)
        return {at: Timing(tuple(samples)) for at, samples in answer["timings"]}

    def comparisons(self, timeout: float) -> list[tuple[str, str]]:
        """(label, peer) of each comparison that the family offers."""
        answer = self._request({"op": "comparisons"}, timeout)
        return [(label, peer) for label, peer in answer["comparisons"]]

    def compare(self, index: int, seconds: float, timeout: float) -> tuple[Timing, Timing]:
        """The timings of ours and of the peer's."""
        request = {"op": "compare", "index": index, "seconds": seconds}
        answer = self._request(request, timeout)
        return Timing(tuple(answer["ours"])), Timing(tuple(answer["theirs"]))

    def _request(self, message: Message, timeout: float) -> Message:
        self.start()
        if not self._ready:
            try:
                self._answer(START_SECONDS)
            except WorkerFailed:
                self._stop()
                raise
            self._ready = True
        self._send(message)
        return self._answer(timeout)

    def _send(self, message: Message) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # if it died, reading its answer finds out how
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _answer(self, timeout: float) -> Message:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            candidate = self._candidate()
            self._stop()
            raise WorkerFailed("hung", f"no answer within {timeout:.0f} s", candidate) from None
        if line is None:
            candidate = self._candidate()
            raise WorkerFailed("crashed", self._cause_of_death(), candidate)
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerFailed("failed", answer["failed"], self._candidate())
        return answer

    def _candidate(self) -> int | None:
        running: int = self._slot[0]
        return None if running == NOBODY else running

    def _cause_of_death(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self._stop()
        self._errors.seek(0)
        said = self._errors.read()[-STDERR_TAIL:].strip().splitlines()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"{how}: {said[-1]}" if said else how

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):  # the compilers that it started end with it
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # what was still to be sent has nobody to read it
            process.stdin.close()


def _listen(stream: IO[str] | None, answers: queue.SimpleQueue[str | None]) -> None:
    """Pass on what the process says, None at its end."""
    assert stream is not None
    with stream:
        for line in stream:
            answers.put(line)
    answers.put(None)
