"""The time a question may take."""

from __future__ import annotations

import time

from constrint.errors import ModelError, TimeLimit


class OutOfTime(TimeLimit):
    """Raised inside the engine when the time is up."""

    def __init__(self) -> None:
        super().__init__("the time is up: allow more, or narrow the domains")


class Clock:
    """Counts from its making; `check` raises OutOfTime once ``seconds`` have passed."""

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and not seconds > 0:
            raise ModelError(f"a time limit of {seconds!r} seconds: it must be positive")
        self.end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises OutOfTime if the time is up."""
        if self.end is not None and time.monotonic() > self.end:
            raise OutOfTime

    def left(self) -> float | None:
        """Seconds left, None without a limit."""
        return None if self.end is None else max(0.0, self.end - time.monotonic())
