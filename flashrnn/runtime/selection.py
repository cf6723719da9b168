"""Which tiling serves a problem on a GPU: a tuned one, else a pack's, else the model's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Generic

from autotune import cache
from autotune.errors import CacheWarning
from autotune.gpu import Gpu
from autotune.space import Problem
from flashrnn import packs
from flashrnn.packs.kind import Kind, ProblemT, TilingT

UNMEASURED = "model-chosen, not measured"


@dataclass(frozen=True)
class Selected(Generic[TilingT]):
    """A tiling and where it is from, in words. measured: whether tuning timed it."""

    tiling: TilingT
    by: str
    measured: bool = False


def select(
    kind: Kind[ProblemT, TilingT], problem: ProblemT, gpu: Gpu, tuned_as: Problem
) -> Selected[TilingT]:
    """What tuning left for this problem, else what is used without.

    tuned_as: what a tuned tiling is remembered under.
    """
    config = cache.lookup(tuned_as, gpu)
    if config is not None:
        try:
            return Selected(kind.tiling_of(config), "tuned: the fastest of those measured", True)
        except TypeError as error:
            warnings.warn(
                f"ignored a tuned tiling of {tuned_as['kernel']}: {error}; "
                "another version wrote it; tune again",
                CacheWarning,
                stacklevel=2,
            )
    return untuned(kind, problem, gpu)


def untuned(kind: Kind[ProblemT, TilingT], problem: ProblemT, gpu: Gpu) -> Selected[TilingT]:
    """What a pack holds for this problem, else the model's choice."""
    found = packs.lookup(kind, problem, gpu)
    if found is not None:
        return Selected(found.tiling, f"{UNMEASURED}: {found.by}")
    return Selected(kind.best(problem, gpu), UNMEASURED)
