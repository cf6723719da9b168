"""The recurrence by a GPU back end as torch operators: schemas, fake implementations, autograd.

flashrnn::<name>_recurrence has the arguments and results of flashrnn::recurrence. A back end says
where its kernels are from and how one is run; all else is the same for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flashrnn.dims import Dims
from flashrnn.emit.triton import BACKWARD, INFERENCE, TRAINING
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.options import Options
from flashrnn.reference import reference
from flashrnn.runtime import higher
from flashrnn.runtime.arguments import check_lengths, of_gates, unit_weights
from flashrnn.runtime.gpu_tensors import saved_shape
from flashrnn.runtime.launch import empty_sequence
from flashrnn.runtime.registry import OPTIONS, define, plain

Tensor = torch.Tensor
OptionalTensor = Tensor | None

_INPUTS = (
    "Tensor wx, Tensor r, Tensor? bias, Tensor? parameters, Tensor? initial, str cell, " + OPTIONS
)


class Launch(Protocol):
    """Runs a plan on tensors that exist; `triton_launch` says what they are."""

    def forward(
        self, plan: Any, cell: Cell, wx: Tensor, r: Tensor, bias: Tensor, weights: OptionalTensor,
        initial: Tensor, states: Tensor, last: Tensor, saved: OptionalTensor,
        lengths: OptionalTensor, options: Options,
    ) -> None: ...  # fmt: skip

    def backward(
        self, plan: Any, cell: Cell, r: Tensor, weights: OptionalTensor, initial: Tensor,
        states: Tensor, saved: Tensor, d_states: OptionalTensor, d_last: OptionalTensor,
        d_gates: Tensor, d_initial: Tensor, lengths: OptionalTensor, options: Options,
    ) -> OptionalTensor: ...  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """A back end: `plan_for` finds a kernel for a direction and sizes, `launch` runs it.

    devices: the kinds of tensors that its operators take.
    """

    name: str
    plan_for: Callable[[Cell, str, Tensor, Dims], Any]
    launch: Launch
    devices: tuple[str, ...]

    def inference(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """(states, last) of the operator's inputs."""
        states, last, _ = self._forward(*inputs, save=False)
        return states, last

    def training(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(states, last, saved), where `saved` is what `backward` needs."""
        return self._forward(*inputs, save=True)

    def _forward(
        self,
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        name: str,
        lengths: OptionalTensor,
        clip: float,
        cut: bool,
        reverse: bool,
        *,
        save: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_lengths(lengths, wx.shape[1])
        cell = cell_of(name)
        B, T, _, N, D = wx.shape
        S = len(cell.states)
        states = empty_sequence(wx, (S,), (N, D))
        if lengths is not None:
            states.zero_()
        initial = _initial(initial, wx, S)
        last = torch.empty_like(initial)
        saved = wx.new_empty(saved_shape(cell, states) if save else (0,))
        if B == 0 or T == 0:
            return states, last.copy_(initial), saved
        bias = wx.new_zeros((len(cell.gates), N, D)) if bias is None else bias
        plan = self.plan_for(cell, TRAINING if save else INFERENCE, wx, Dims(B, T, N, D))
        self.launch.forward(
            plan, cell, wx, r, bias, unit_weights(cell, r, parameters), initial, states, last,
            saved if save else None, lengths, Options(clip, cut, reverse),
        )  # fmt: skip
        return states, last, saved

    def backward(
        self,
        r: Tensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        states: Tensor,
        saved: Tensor,
        d_states: OptionalTensor,
        d_last: OptionalTensor,
        need: list[bool],
        name: str,
        lengths: OptionalTensor,
        clip: float,
        cut: bool,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        """Gradients of wx, r, bias, parameters and initial; empty where none is needed."""
        cell = cell_of(name)
        S, B, T, N, D = states.shape
        dense, G = cell.recurrence == DENSE, len(cell.gates)
        initial = _initial(initial, states[0].unsqueeze(2), S)
        d_gates = empty_sequence(states[0], (), (G, N, D))
        if lengths is not None:
            d_gates.zero_()
        weights, options = unit_weights(cell, r, parameters), Options(clip, cut, reverse)
        K = 0 if weights is None else weights.shape[0]
        if B == 0 or T == 0:
            d_initial = torch.zeros_like(initial) if d_last is None else d_last.clone()
            d_weights: OptionalTensor = r.new_zeros((K, N, D))
        else:
            d_initial = torch.empty_like(initial)
            d_weights = self.launch.backward(
                self.plan_for(cell, BACKWARD, states, Dims(B, T, N, D)), cell, r, weights, initial,
                states, saved, d_states, d_last, d_gates, d_initial, lengths, options,
            )  # fmt: skip
        none = r.new_empty(0)
        need_wx, need_r, need_bias, need_parameters, need_initial = need
        d_wx = of_gates(d_gates, cell.gates, cell.input) if need_wx else none
        d_r = d_parameters = none
        if need_r and dense:
            d_r = _d_recurrent(cell, d_gates, states[0], initial[0, :, 0], lengths, reverse)
        elif need_r and d_weights is not None:
            d_r = d_weights[: len(cell.recurrent)].to(r.dtype, copy=True)
        if need_parameters and d_weights is not None:
            d_parameters = d_weights[K - len(cell.parameters) :].to(r.dtype, copy=True)
        d_bias = d_gates.sum((0, 1)) if need_bias else none
        return d_wx, d_r, d_bias, d_parameters, d_initial if need_initial else none


def _initial(initial: OptionalTensor, like: Tensor, S: int) -> Tensor:
    B, _, _, N, D = like.shape
    return like.new_zeros((S, B, 1, N, D)) if initial is None else initial.contiguous()


def _d_recurrent(
    cell: Cell, d_gates: Tensor, h: Tensor, first: Tensor, lengths: OptionalTensor, reverse: bool
) -> Tensor:
    """dR [G_r, N, D, P]: the gates' gradients [B, T, G, N, D] times the h before each step.

    h [B, T, N, D] after each step, zero past the end of a row, where d_gates is zero too; first
    [B, N, D], before the first step.
    """
    B, T, _, N, D = d_gates.shape
    gates = of_gates(d_gates, cell.gates, cell.product_gates)
    if B == 0 or T == 0 or not cell.product_gates:
        return h.new_zeros((len(cell.product_gates), N, D, D))
    if not reverse:
        begins, others, before = gates[:, 0], gates[:, 1:], h[:, :-1]
    else:
        begins, others, before = gates[:, -1], gates[:, :-1], h[:, 1:]
        if lengths is not None:
            rows = torch.arange(B, device=h.device)
            begins = gates[rows, (lengths.to(h.device) - 1).clamp(min=0)]
    total = torch.einsum("bgnd,bnp->gndp", begins, first)
    if T > 1:
        total = total + torch.einsum("btgnd,btnp->gndp", others, before)
    return total.contiguous()


def differentiable(backend: Backend) -> type[torch.autograd.Function]:
    """The autograd Function of flashrnn::<name>_recurrence."""

    def operator(what: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(torch.ops.flashrnn, f"{backend.name}_{what}").default
        return found

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
            *tensors, _, lengths, _, _, _ = inputs
            states, last, saved = plain(operator("training"), backend.training)(*inputs)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors, states, saved, lengths)
            ctx.rest = inputs[5:]
            return states, last

        @staticmethod
        def backward(
            ctx: Any, d_states: OptionalTensor, d_last: OptionalTensor
        ) -> tuple[OptionalTensor, ...]:
            *inputs, states, saved, lengths = ctx.saved_tensors
            _, r, _, parameters, initial = inputs
            need = list(ctx.needs_input_grad[:5])
            cell, _, *options = ctx.rest
            run = plain(operator("backward"), backend.backward)

            def fused() -> tuple[OptionalTensor, ...]:
                grads = run(
                    r, parameters, initial, states, saved, d_states, d_last, need, cell, lengths,
                    *options,
                )  # fmt: skip
                return tuple(g if n else None for g, n in zip(grads, need, strict=True))

            def slow(
                wx: Tensor,
                r: Tensor,
                bias: OptionalTensor,
                parameters: OptionalTensor,
                initial: OptionalTensor,
            ) -> tuple[Tensor, Tensor]:
                taken = Options(*options)
                return reference(wx, r, bias, initial, cell, parameters, lengths, taken)

            grads = higher.gradients(fused, slow, inputs, (d_states, d_last))
            return (*grads, *(None for _ in ctx.rest))

    return Recurrence


def _recurrence_fake(
    wx: Tensor,
    r: Tensor,
    bias: OptionalTensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    cell: str,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    B, _, _, N, D = wx.shape
    S = len(cell_of(cell).states)
    return empty_sequence(wx, (S,), (N, D)), wx.new_empty((S, B, 1, N, D))


def _training_fake(wx: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    states, last = _recurrence_fake(wx, *rest)
    return states, last, wx.new_empty(saved_shape(cell_of(rest[4]), states))


def _backward_fake(
    r: Tensor,
    parameters: OptionalTensor,
    initial: OptionalTensor,
    states: Tensor,
    saved: Tensor,
    d_states: OptionalTensor,
    d_last: OptionalTensor,
    need: list[bool],
    cell: str,
    *options: Any,
) -> tuple[Tensor, ...]:
    declared = cell_of(cell)
    S, B, _, N, D = states.shape
    gates = empty_sequence(states[0], (), (len(declared.gates), N, D))
    d_wx = of_gates(gates, declared.gates, declared.input) if need[0] else r.new_empty(0)
    shapes = (
        r.shape,
        (len(declared.gates), N, D),
        (len(declared.parameters), N, D),
        (S, B, 1, N, D),
    )
    rest = (r.new_empty(s if n else 0) for s, n in zip(shapes, need[1:], strict=True))
    return (d_wx, *rest)


def define_recurrence(backend: Backend) -> Callable[..., tuple[Tensor, Tensor]]:
    """Register a back end's operators; returns what runs the recurrence on checked tensors.

    That takes (cell, wx, r, bias, parameters, initial, lengths, options) and gives
    (states [S, B, T, N, D], last [S, B, 1, N, D]).
    """
    name, devices, recorded = backend.name, backend.devices, differentiable(backend).apply
    define(
        f"{name}_recurrence", f"({_INPUTS}) -> (Tensor states, Tensor last)",
        backend.inference, _recurrence_fake, recorded, devices=devices,
    )  # fmt: skip
    define(
        f"{name}_training", f"({_INPUTS}) -> (Tensor states, Tensor last, Tensor saved)",
        backend.training, _training_fake, devices=devices,
    )  # fmt: skip
    define(
        f"{name}_backward",
        "(Tensor r, Tensor? parameters, Tensor? initial, Tensor states, Tensor saved, "
        f"Tensor? d_states, Tensor? d_last, bool[] need, str cell, {OPTIONS}) -> "
        "(Tensor d_wx, Tensor d_r, Tensor d_bias, Tensor d_parameters, Tensor d_initial)",
        backend.backward, _backward_fake, devices=devices,
    )  # fmt: skip
    operator = getattr(torch.ops.flashrnn, f"{name}_recurrence").default

    def recurrence(
        cell: Cell,
        wx: Tensor,
        r: Tensor,
        bias: OptionalTensor,
        parameters: OptionalTensor,
        initial: OptionalTensor,
        lengths: OptionalTensor,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        run = plain(operator, backend.inference, recorded)
        states, last = run(
            wx, r, bias, parameters, initial, cell.key, lengths,
            options.gradient_clip, options.gradient_cut, options.reverse,
        )  # fmt: skip
        return states, last

    return recurrence
