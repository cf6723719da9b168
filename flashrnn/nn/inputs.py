"""What a module is called with and returns: padded, unbatched and packed sequences, states.

Checks are made in torch.nn's order and in its words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flashrnn.errors import InputError

if TYPE_CHECKING:
    from flashrnn.nn.base import Recurrent, State

Tensor = torch.Tensor


class Batch(NamedTuple):
    """Input as the layers take it, and what it was."""

    x: Tensor  # [T, B, I]
    lengths: Tensor | None  # [B]
    unbatched: bool
    packed: PackedSequence | None  # whose rows are sorted by length, as x's are


def read(module: Recurrent, input: Tensor | PackedSequence, lengths: Tensor | None) -> Batch:
    """Check the input and bring it into one shape."""
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise InputError("lengths come with a PackedSequence: pass either, not both")
        return _unpacked(module, input)
    if not isinstance(input, Tensor):
        raise InputError(f"input must be a Tensor or a PackedSequence, got {type(input).__name__}")
    if input.layout != torch.strided:
        raise InputError(
            f"input must be a dense tensor, its layout is {input.layout}: use to_dense(), or for "
            "sequences of different lengths a PackedSequence"
        )
    if input.dim() not in (2, 3):
        tensor = " tensor" if _name(module) == "RNN" else ""
        raise InputError(
            f"{_name(module)}: Expected input to be 2D or 3D, got {input.dim()}D{tensor} instead"
        )
    unbatched = input.dim() == 2
    if unbatched and lengths is not None:
        raise InputError("lengths are those of a batch, but the input is unbatched (2D)")
    x = input.unsqueeze(1) if unbatched else input
    x = x.transpose(0, 1) if module.batch_first and not unbatched else x
    _check(module, x)
    if x.shape[0] == 0:
        raise InputError("Expected sequence length to be larger than 0 in RNN")
    return Batch(x, lengths, unbatched, None)


def _unpacked(module: Recurrent, packed: PackedSequence) -> Batch:
    data, sizes = packed.data, packed.batch_sizes
    if data.dim() != 2:
        raise InputError(f"input must have 2 dimensions, got {data.dim()}")
    _check(module, data)
    if int(sizes[0]) == int(sizes[-1]):  # all of one length: nothing to pad
        return Batch(data.view(len(sizes), -1, data.shape[1]), None, False, packed)
    x, lengths = pad_packed_sequence(PackedSequence(data, sizes))
    return Batch(x, lengths, False, packed)


def _check(module: Recurrent, x: Tensor) -> None:
    weight = module.first_weight
    if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise InputError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert "
            f"input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.shape[-1] != module.input_size:
        raise InputError(
            "input.size(-1) must be equal to input_size. Expected "
            f"{module.input_size}, got {x.shape[-1]}"
        )
    if x.device != weight.device:
        raise InputError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{x.device} and parameter tensor at {weight.device}"
        )


def initial(module: Recurrent, hx: State | None, batch: Batch) -> tuple[Tensor, ...] | None:
    """The initial states, each [layers * directions, B, size], in the order of the batch's rows."""
    if hx is None:
        return None
    names = module.cell.states
    several = len(names) > 1
    given = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
    if isinstance(hx, Tensor) == several or len(given) != len(names):
        expected = f"a tuple ({', '.join(f'{n}_0' for n in names)})" if several else "a Tensor h_0"
        got = f"{len(given)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise InputError(f"{_name(module)} expects hx as {expected}, got {got}")
    if batch.packed is None:
        _check_rank(given, batch.unbatched)
        if batch.unbatched:
            given = tuple(s.unsqueeze(1) for s in given)
    for k, (name, s) in enumerate(zip(names, given, strict=True)):
        size = module.output_size if k == 0 else module.hidden_size
        expected_size = (module.num_layers * module.num_directions, batch.x.shape[1], size)
        if tuple(s.shape) != expected_size:
            which = f"hidden[{k}]" if several else "hidden"
            raise InputError(f"Expected {which} size {expected_size}, got {list(s.shape)}")
        alike = s.dtype == batch.x.dtype or torch._C._is_any_autocast_enabled()
        if not alike or s.device != batch.x.device:
            raise InputError(
                f"Input and hidden tensors are not alike: input is {batch.x.dtype} on "
                f"{batch.x.device}, {name}_0 is {s.dtype} on {s.device}"
            )
    order = None if batch.packed is None else batch.packed.sorted_indices
    return given if order is None else tuple(s.index_select(1, order) for s in given)


def _check_rank(states: tuple[Tensor, ...], unbatched: bool) -> None:
    rank, kind = (2, "unbatched") if unbatched else (3, "batched")
    if all(s.dim() == rank for s in states):
        return
    if len(states) == 1:
        got = f"{states[0].dim()}-D tensor"
        raise InputError(f"For {kind} {rank}-D input, hx should also be {rank}-D but got {got}")
    dims = ", ".join(f"{s.dim()}-D" for s in states)
    which = "hx and cx" if len(states) == 2 else "all states"
    raise InputError(
        f"For {kind} {rank}-D input, {which} should also be {rank}-D but got ({dims}) tensors"
    )


def output(module: Recurrent, h: Tensor, batch: Batch) -> Tensor | PackedSequence:
    """h [T, B, size] in the form that the input had."""
    if batch.packed is None:
        if batch.unbatched:
            return h.squeeze(1)
        return h.transpose(0, 1) if module.batch_first else h
    lengths = batch.lengths
    data = h.flatten(0, 1) if lengths is None else pack_padded_sequence(h, lengths).data
    return PackedSequence(data, *batch.packed[1:])


def final(states: list[Tensor], batch: Batch) -> list[Tensor]:
    """Final states [layers * directions, B, size] in the form and order that the input had."""
    if batch.unbatched:
        return [s.squeeze(1) for s in states]
    order = None if batch.packed is None else batch.packed.unsorted_indices
    return states if order is None else [s.index_select(1, order) for s in states]


def _name(module: Recurrent) -> str:
    return type(module).__name__
