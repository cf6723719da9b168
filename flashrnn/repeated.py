"""Calls whose like was found in order: checking each again would cost as much as a small kernel."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from flashrnn.runtime.kept import Kept
from flashrnn.runtime.registry import Rest, watched

Tensor = torch.Tensor
OptionalTensor = Tensor | None
Form = tuple[object, ...]

# Forms of recurrences (5 tensors) and layers (6) on a CPU, and what follows from their flags.
checked: Kept[Form | None, Rest] = Kept()


def form_of(flags: tuple[object, ...], tensors: tuple[OptionalTensor, ...]) -> Form | None:
    """All that checks look at of tensors on a CPU; None for other objects."""
    try:
        forms = [None if x is None else (x.shape, x.dtype, x.layout, x.is_cpu) for x in tensors]
        return (*flags, *forms)
    except AttributeError:  # a list, an array: the checks say so
        return None


def special() -> bool:
    """Whether a call's surroundings have a say in it."""
    return watched() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu")
