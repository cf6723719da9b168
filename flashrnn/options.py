"""What a caller may ask of a recurrence beside its cell; `reference` says what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from flashrnn.errors import BackendError, OptionError

# Every option of `flashrnn` and `layer`, and the back ends that carry it.
CARRIED: dict[str, tuple[str, ...]] = {
    "gradient_clip": ("cpu", "triton", "cuda", "reference"),
    "gradient_cut": ("cpu", "triton", "cuda", "reference"),
    "output_clip": ("cpu", "triton", "cuda", "reference"),
    "zoneout": ("cpu", "triton", "cuda", "reference"),
    "lengths": ("cpu", "triton", "cuda", "reference"),
    "reverse": ("cpu", "triton", "cuda", "reference"),
}


def check_carried(backend: str, **asked: object) -> None:
    """Raise BackendError where an option is asked for (not None or False) that is not carried."""
    for name, value in asked.items():
        if value is not None and value is not False and backend not in CARRIED[name]:
            raise BackendError(
                f"backend={backend!r} does not carry the option {name}; these do: "
                f"{', '.join(CARRIED[name])}"
            )


@dataclass(frozen=True)
class Options:
    """Options that change no code, only how it runs.

    gradient_clip: bound of what flows back through time into h, before the gradient of the output
    at that step is added; infinity for none. gradient_cut: nothing flows back through R (R keeps
    its gradient). reverse: each sequence runs from its end to its beginning.
    """

    gradient_clip: float = math.inf
    gradient_cut: bool = False
    reverse: bool = False

    def __post_init__(self) -> None:
        if not self.gradient_clip > 0:
            raise OptionError(
                f"gradient_clip={self.gradient_clip!r} must be positive, or None for no bound"
            )
        for name in ("gradient_cut", "reverse"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise OptionError(f"{name}={value!r} must be True or False")


NONE = Options()


@lru_cache(maxsize=256)
def options_of(gradient_clip: float, gradient_cut: bool, reverse: bool) -> Options:
    """The options, made and checked once."""
    return Options(gradient_clip, gradient_cut, reverse)
