"""What all recurrent modules share: their arguments, their parameters and a call."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from flashrnn.api import BACKENDS
from flashrnn.errors import ArgumentError, BackendError, ExportError, InputError, OptionError
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.nn import inputs, stack
from flashrnn.nn.zoneout import rates

Tensor = torch.Tensor
OptionalTensor = Tensor | None
State = Tensor | tuple[Tensor, ...]


class Weights(NamedTuple):
    """One direction of one layer as `flashrnn.layer` takes it."""

    W: Tensor  # [G_w, N, D, I]
    R: Tensor  # [G_r, N, D, P], P less than D where h is projected; [G_r, N, D] element-wise
    b: Tensor | None  # [G, N, D]
    parameters: Tensor | None  # [K, N, D]
    projection: Tensor | None  # [N, P, D]: the output is the projected h


# Input weights, recurrent weights, biases and per-unit parameters: see `_in_cell_order`.
InCellOrder = tuple[Tensor, Tensor, OptionalTensor, OptionalTensor]


class Recurrent(torch.nn.Module):
    """Layers of one cell, called as torch.nn.LSTM, GRU and RNN are.

    A subclass says which parameters there are (`_shapes`), and how they and their gradients are
    brought from its order into the cell's and back. Attributes are those of torch.nn; `cell` is the
    cell, `zoneout` the rates of all its states.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        """As the class says. Raises OptionError, ArgumentError and BackendError."""
        super().__init__()
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.proj_size, self.num_heads = dropout, proj_size, num_heads
        self.zoneout = rates(cell, zoneout)
        self.recurrent_dropout, self.gradient_clip = recurrent_dropout, gradient_clip
        self.backend = backend
        self._check_arguments()
        self.dropout = float(dropout)
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            for direction in range(self.num_directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                names = []
                for name, shape in self._shapes(layer).items():
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    setattr(self, name + suffix, torch.nn.Parameter(empty))
                    names.append(name + suffix)
                self._all_weights.append(names)
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        """2 where bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def head_dim(self) -> int:
        """Units of a head, D."""
        return self.hidden_size // self.num_heads

    @property
    def output_size(self) -> int:
        """Numbers of one direction's output: proj_size where there is one, else hidden_size."""
        return self.proj_size or self.hidden_size

    @property
    def all_weights(self) -> list[list[torch.nn.Parameter]]:
        """The parameters of each direction of each layer, in torch.nn's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def first_weight(self) -> Tensor:
        """The first parameter: all have its dtype and device."""
        return getattr(self, self._all_weights[0][0])  # type: ignore[no-any-return]

    def flatten_parameters(self) -> None:
        """Accepted and without effect: the kernels take parameters from where they are."""

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as torch.nn does.

        In the same order, so that the same seed gives the same weights. Recurrent weights of
        several heads have fewer inputs: 1/sqrt(head_dim) there.
        """
        for name, parameter in self.named_parameters():
            recurrent = name.startswith("weight_hh")
            bound = 1.0 / math.sqrt(self.head_dim if recurrent else self.hidden_size)
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run all layers: (output, final state), as torch.nn's module of that name.

        input: [T, B, input_size], [B, T, input_size] where batch_first, [T, input_size], or a
        PackedSequence. hx: the initial states, each [num_layers * num_directions, B, size] ([..,
        size] for unbatched input), None for zeros; a tensor for a cell with one state, else a
        tuple. lengths [B], integers, beside a padded input: the steps of each sequence; outputs
        are zero past its end, its final state is that at its own end, and the reverse direction
        begins there. Raises InputError, in torch.nn's words.
        """
        batch = inputs.read(self, input, lengths)
        initial = inputs.initial(self, hx, batch)
        h, last = stack.run(self, batch.x, initial, batch.lengths)
        return inputs.output(self, h, batch), self._state(inputs.final(last, batch))

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One time step, for streams: (output, new state).

        x: [B, input_size] or [input_size]; state: what the previous call, or `forward`, returned,
        None for the beginning; output: [B, output_size] or [output_size]. A sequence of steps
        gives what `forward` gives for it, to rounding. Raises InputError.
        """
        if self.bidirectional:
            raise InputError("step() needs a causal module, but this one is bidirectional")
        if self.training and self.recurrent_dropout > 0:
            raise InputError(
                "step() cannot keep one mask of recurrent_dropout for a whole sequence: "
                "call eval() first, or train with forward()"
            )
        if x.dim() not in (1, 2):
            raise InputError(f"step: Expected input to be 1D or 2D, got {x.dim()}D instead")
        time = 1 if self.batch_first and x.dim() == 2 else 0
        output, new = self(x.unsqueeze(time), state)
        return output.squeeze(time), new

    def __prepare_scriptable__(self) -> None:
        """torch.jit.script asks for this; raises ExportError, which says what to use instead."""
        raise ExportError(
            f"TorchScript cannot express flashrnn.nn.{type(self).__name__}: use torch.export, "
            "flashrnn.onnx.export or torch.compile; torch.jit.trace works for one kind of input"
        )

    def _parameters_of(self, index: int) -> list[Tensor]:
        """Of direction `index % num_directions` of layer `index // num_directions`.

        In the order of `_shapes`. The mask of the recurrent weights is drawn, one per sequence.
        """
        parameters = [getattr(self, name) for name in self._all_weights[index]]
        if self.recurrent_dropout > 0 and self.training:
            parameters[1] = torch.nn.functional.dropout(parameters[1], self.recurrent_dropout)
        return parameters

    def _weights_of(self, parameters: Sequence[Tensor]) -> Weights:
        """One direction's parameters as `flashrnn.layer` takes them."""
        N, D = self.num_heads, self.head_dim
        w, r, *rest = parameters
        V = rest.pop().reshape(N, -1, D) if self.proj_size else None
        w, r, b, unit = self._in_cell_order((w, r, *rest))
        R = r.reshape((-1, N, D, r.shape[1]) if self.cell.recurrence == DENSE else (-1, N, D))
        b = None if b is None else b.reshape(-1, N, D)
        unit = None if unit is None else unit.reshape(-1, N, D)
        return Weights(w.reshape(-1, N, D, w.shape[1]), R, b, unit, V)

    def _in_cell_order(self, parameters: Sequence[Tensor]) -> InCellOrder:
        """One direction's parameters, but for a projection, with gates as the cell has them.

        [G_w * hidden_size, I], [G_r * hidden_size, P] ([G_r * hidden_size] for an element-wise
        recurrence), [G * hidden_size], per-unit parameters [K, hidden_size].
        """
        raise NotImplementedError

    def _wanted_in_cell_order(self, needs: Sequence[bool]) -> tuple[bool, bool, bool, bool]:
        """Which of them have a gradient, from which parameters need one."""
        raise NotImplementedError

    def _gradients_of(
        self, w: OptionalTensor, r: OptionalTensor, b: OptionalTensor, unit: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        """The parameters' gradients from those of `_in_cell_order`, no two in one memory."""
        raise NotImplementedError

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names without suffix, and shapes, of one direction's parameters, in their order."""
        raise NotImplementedError

    def _layer_input(self, layer: int) -> int:
        return self.input_size if layer == 0 else self.output_size * self.num_directions

    def _state(self, states: Sequence[Tensor]) -> State:
        return states[0] if len(states) == 1 else tuple(states)

    def extra_repr(self) -> str:
        """Sizes, and every argument that is not its default."""
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False, "num_heads": 1, "recurrent_dropout": 0.0,
            "gradient_clip": None, "backend": "auto",
        }  # fmt: skip
        chosen = [f"{n}={getattr(self, n)}" for n, d in defaults.items() if getattr(self, n) != d]
        if any(self.zoneout):
            chosen.append(f"zoneout={self.zoneout}")
        return ", ".join([str(self.input_size), str(self.hidden_size), *chosen])

    def _check_arguments(self) -> None:
        """As torch.nn checks them, in its words; then what torch.nn does not have."""
        dropout, layers = self.dropout, self.num_layers
        _probability("dropout", dropout)
        if dropout > 0 and layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={layers}",
                stacklevel=4,
            )
        for name, kind in (("bias", bool), ("batch_first", bool), ("input_size", int),
                           ("hidden_size", int), ("num_heads", int)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, kind):
                got = type(value).__name__
                raise ArgumentError(f"{name} should be of type {kind.__name__}, got: {got}")
        for name in ("input_size", "hidden_size", "num_layers"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be greater than zero")
        if self.proj_size < 0:
            raise OptionError(
                "proj_size should be a positive integer or zero to disable projections"
            )
        if self.proj_size >= self.hidden_size:
            raise OptionError("proj_size has to be smaller than hidden_size")
        for name in ("hidden_size", "proj_size"):
            if self.num_heads < 1 or getattr(self, name) % self.num_heads:
                raise OptionError(
                    f"num_heads={self.num_heads} has to divide {name}={getattr(self, name)}"
                )
        if any(self.zoneout) and self.proj_size:
            raise OptionError(
                "zoneout keeps the h that R multiplies, which a projected LSTM never forms: "
                f"zoneout={self.zoneout} and proj_size={self.proj_size} exclude each other"
            )
        _probability("recurrent_dropout", self.recurrent_dropout)
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise OptionError(
                f"gradient_clip={self.gradient_clip!r} must be positive, or None for no bound"
            )
        if self.backend not in BACKENDS:
            raise BackendError(f"backend={self.backend!r} does not exist; choose one of {BACKENDS}")


def _probability(name: str, value: object) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise OptionError(
            f"{name} should be a number in range [0, 1] representing the probability of an "
            "element being zeroed"
        )
