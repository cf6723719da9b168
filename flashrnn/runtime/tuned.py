"""What tuning left for a GPU kernel, as its back end reads it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from autotune import cache
from autotune.errors import CacheWarning
from autotune.gpu import Gpu
from autotune.space import Problem
from flashrnn.errors import TilingError

TilingT_co = TypeVar("TilingT_co", covariant=True)


@dataclass(frozen=True)
class Selected(Generic[TilingT_co]):
    """A tiling and where it is from, in words. measured: whether tuning timed it."""

    tiling: TilingT_co
    by: str
    measured: bool = False


def remembered(
    key: Problem, gpu: Gpu, cell: str, tiling_of: Callable[[Mapping[str, int]], TilingT_co]
) -> Selected[TilingT_co] | None:
    """The tiling of the configuration that is remembered under the key; None where there is none.

    tiling_of: raises TypeError or TilingError for a configuration that is none of this version's
    or does not fit; that is told by a CacheWarning, which names the cell.
    """
    config = cache.lookup(key, gpu)
    if config is None:
        return None
    try:
        return Selected(tiling_of(config), "tuned: the fastest of those measured", measured=True)
    except (TypeError, TilingError) as error:
        discard(cell, f"{error}; another version wrote it")
        return None


def discard(cell: str, why: str) -> None:
    """Tell that a tuned tiling is not used."""
    warnings.warn(
        f"ignored a tuned tiling of {cell}: {why}; tune again", CacheWarning, stacklevel=3
    )
