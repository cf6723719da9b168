"""The functional entry point: check arguments, choose a back end, run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashrnn import autocast
from flashrnn.checks import check, check_tensor, lengths_of, same, states_shape
from flashrnn.dtypes import BY_NAME, STORED_IN_16_BITS
from flashrnn.errors import BackendError, DeviceError, DtypeError, OptionError, ShapeError
from flashrnn.ir.cell import Cell, cell_of
from flashrnn.ir.variants import variant
from flashrnn.options import NONE, Options, check_carried
from flashrnn.reference import reference
from flashrnn.repeated import checked, form_of, special
from flashrnn.runtime.arguments import check_lengths
from flashrnn.runtime.cuda_check import check_cuda
from flashrnn.runtime.cuda_recurrence import recurrence as cuda_recurrence
from flashrnn.runtime.gpu_choice import gpu_choice
from flashrnn.runtime.layer import layer as run_layer
from flashrnn.runtime.layer import layer_unwatched
from flashrnn.runtime.recurrence import recurrence, recurrence_unwatched
from flashrnn.runtime.registry import rest_of, unsupported_transform
from flashrnn.runtime.triton_check import check_triton
from flashrnn.runtime.triton_recurrence import recurrence as triton_recurrence

Tensor = torch.Tensor
BACKENDS = ("auto", "cpu", "triton", "cuda", "reference")


@dataclass(frozen=True)
class Choice:
    """A back end and why it was chosen."""

    backend: str
    reason: str


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str | Cell = "lstm",
    backend: str = "auto",
    parameters: Tensor | None = None,
    *,
    gradient_clip: float | None = None,
    gradient_cut: bool = False,
    output_clip: float | None = None,
    zoneout: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent cell over a sequence with fused kernels, differentiably.

    Wx [B, T, G_w, N, D]: the input products. R [G_r, N, D, P], P = D: recurrent weights,
    (R h)[g, n, d] = sum_p R[g, n, d, p] h[n, p]; [G_r, N, D] for an element-wise recurrence.
    b [G, N, D] or None for zeros. states [S, B, 1, N, D]: initial states, None for zeros; state 0
    is the output h. parameters [K, N, D]: per-unit parameters of a cell that declares some.
    function: a cell or its name; the order of the gates is the cell's. Tensors of any strides,
    all of one dtype and device.

    Returns (states [S, B, T, N, D] after every step, last [S, B, 1, N, D]). In memory T lies before
    B from the kernels of a CPU, from those of a GPU as in Wx. Gradients flow to every
    floating-point argument from both results.

    gradient_clip: bound of what flows back through time into h at each step, before the gradient
    of the output there is added. gradient_cut: nothing flows back to h through R h (R keeps its
    gradient). output_clip: h is clamped to ± this (a kernel of its own per value). zoneout
    [S, B, T, N, D], of Wx's dtype: how much of a state stays as it was; 1 or 0 in training, drawn
    with torch, and the rate at inference (Krueger et al. 2017). lengths [B], integers: the steps of
    each row; past its end the outputs are zero, `last` is the state at its end, and nothing there
    is read. reverse: each row runs from its own end to its beginning; outputs stand at their own
    times.

    backend: "cpu" (generated C++; bfloat16 and float16 are converted, computed in float32 and
    rounded on return), "triton" (generated Triton: float32, float16 and bfloat16 on an NVIDIA GPU;
    where TRITON_INTERPRET=1, CPU tensors in Triton's interpreter), "cuda" (generated CUDA C++, R in
    registers, extra `cuda`: float16, bfloat16, and float32 where torch may multiply it in tf32, on
    an NVIDIA GPU; no run of it has been measured), "reference" (slow, any dtype and device,
    gradients of any order) or "auto" (see `choose_backend`). Raises ShapeError, DtypeError,
    DeviceError, UnknownFunctionError, OptionError, BackendError. The layout is that of FlashRNN
    (Pöppel et al., 2024).
    """
    cell = cell_of(function)
    form = None
    if lengths is None and zoneout is None and not special():
        flags = (cell, backend, gradient_clip, gradient_cut, output_clip, reverse)
        tensors = (Wx, R, b, parameters, states)
        form = form_of(flags, tensors)
        rest = checked.get(form)
        if rest is not None:
            return recurrence_unwatched(tensors, rest)
    Wx, R, b, states, parameters = autocast.cast(Wx, R, b, states, parameters)
    check(cell, Wx, R, b, states, parameters)
    options = _options(gradient_clip, gradient_cut, reverse)
    lengths = lengths_of(lengths, Wx)
    if zoneout is not None:
        same("zoneout", "[S, B, T, N, D]", zoneout, states_shape(cell, Wx), cell)
        Wx = torch.cat((Wx, zoneout.to(Wx.dtype).permute(1, 2, 0, 3, 4)), 2)
        b = None if b is None else torch.cat((b, b.new_zeros((len(cell.states), *b.shape[1:]))))
    cell = _variant(cell, output_clip, zoneout is not None, gradient_cut)
    backend = chosen_backend(backend, Wx, cell)
    check_carried(
        backend, gradient_clip=gradient_clip, gradient_cut=gradient_cut, output_clip=output_clip,
        zoneout=zoneout, lengths=lengths, reverse=reverse,
    )  # fmt: skip
    if backend == "reference":
        check_lengths(lengths, Wx.shape[1])
        return reference(Wx, R, b, states, cell, parameters, lengths, options)
    if backend == "triton":
        check_triton(Wx)
        return triton_recurrence(cell, Wx, R, b, parameters, states, lengths, options)
    if backend == "cuda":
        check_cuda(Wx)
        return cuda_recurrence(cell, Wx, R, b, parameters, states, lengths, options)
    _check_cpu(Wx, "Wx")
    if form is not None and Wx.dtype not in STORED_IN_16_BITS:
        checked.keep(form, rest_of(cell, None, options))

    def run(
        Wx: Tensor, R: Tensor, b: Tensor | None, states: Tensor | None, parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return recurrence(cell, Wx, R, b, parameters, states, lengths, options)

    return _in_kernel_dtype(run, Wx, R, b, states, parameters)


def layer(
    x: Tensor,
    W: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str | Cell = "lstm",
    parameters: Tensor | None = None,
    *,
    backend: str = "auto",
    gradient_clip: float | None = None,
    gradient_cut: bool = False,
    output_clip: float | None = None,
    zoneout: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent layer, its input product included.

    x [B, T, I]; W [G_w, N, D, I], the input weights; the rest as in `flashrnn`. Returns the output
    h [B, T, N, D] after every step, T outermost in memory, and last [S, B, 1, N, D], the states
    after the last step. Gradients flow to every floating-point argument from both. On a CPU faster
    than a product followed by `flashrnn`, since neither the products nor their gradients are ever
    held for the whole sequence; other back ends do just that. Raises as `flashrnn` does.
    """
    cell = cell_of(function)
    form = None
    if lengths is None and zoneout is None and not special():
        flags = (cell, backend, gradient_clip, gradient_cut, output_clip, reverse)
        tensors = (x, W, R, b, parameters, states)
        form = form_of(flags, tensors)
        rest = checked.get(form)
        if rest is not None:
            return layer_unwatched(tensors, rest)
    x, W, R, b, states, parameters = autocast.cast(x, W, R, b, states, parameters)
    check_tensor("x", x)
    check_tensor("W", W)
    if x.dim() != 3:
        raise ShapeError(f"x must be [B, T, I] (3 dimensions), got {tuple(x.shape)}")
    if W.dim() != 4 or W.shape[3] != x.shape[2]:
        raise ShapeError(
            f"W must be [G_w, N, D, I] with I = {x.shape[2]} as in x, got {tuple(W.shape)}"
        )
    if W.dtype != x.dtype or W.device != x.device:
        raise DtypeError(f"W is {W.dtype} on {W.device}, but x is {x.dtype} on {x.device}")
    # the sizes of the products that the layer would hand to `flashrnn`
    check(cell, x.new_empty(1).expand(*x.shape[:2], *W.shape[:3]), R, b, states, parameters)
    chosen = chosen_backend(backend, x)
    if zoneout is not None or chosen != "cpu":  # the masks are a part of Wx, so it must exist
        lengths = lengths_of(lengths, x)
        if lengths is not None:  # a product would read what lies behind an end
            steps = torch.arange(x.shape[1], device=x.device)
            x = x.masked_fill((steps >= lengths.to(x.device)[:, None])[..., None], 0.0)
        time_major = torch.nn.functional.linear(x.transpose(0, 1), W.flatten(0, 2))
        Wx = time_major.transpose(0, 1).unflatten(2, W.shape[:3])
        every, last = flashrnn(
            Wx, R, b, states, cell, backend, parameters, gradient_clip=gradient_clip,
            gradient_cut=gradient_cut, output_clip=output_clip, zoneout=zoneout, lengths=lengths,
            reverse=reverse,
        )  # fmt: skip
        return every[0], last
    _check_cpu(x, "x")
    check_carried(
        chosen, gradient_clip=gradient_clip, gradient_cut=gradient_cut, output_clip=output_clip,
        zoneout=zoneout, lengths=lengths, reverse=reverse,
    )  # fmt: skip
    options = _options(gradient_clip, gradient_cut, reverse)
    cell = _variant(cell, output_clip, False, gradient_cut)
    lengths = lengths_of(lengths, x)
    if form is not None and x.dtype not in STORED_IN_16_BITS:
        checked.keep(form, rest_of(cell, None, options))

    def run(
        x: Tensor,
        W: Tensor,
        R: Tensor,
        b: Tensor | None,
        states: Tensor | None,
        parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return run_layer(cell, x, W, R, b, parameters, states, lengths, options)

    return _in_kernel_dtype(run, x, W, R, b, states, parameters)


def _in_kernel_dtype(
    run: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a CPU kernel; what is stored in 16 bits is computed in float32, results are rounded."""
    dtype = next(x.dtype for x in tensors if x is not None)
    if dtype not in STORED_IN_16_BITS:
        return run(*tensors)
    every, last = run(*(None if x is None else x.float() for x in tensors))
    return every.to(dtype), last.to(dtype)


def _options(gradient_clip: float | None, gradient_cut: bool, reverse: bool) -> Options:
    if gradient_clip is None and not gradient_cut and not reverse:
        return NONE
    return Options(math.inf if gradient_clip is None else gradient_clip, gradient_cut, reverse)


def _variant(cell: Cell, output_clip: float | None, zoneout: bool, cut: bool) -> Cell:
    if output_clip is not None and not 0 < output_clip < math.inf:
        raise OptionError(f"output_clip={output_clip!r} must be positive and finite, or None")
    if output_clip is None and not zoneout and not cut:
        return cell
    return _derived(cell.key, output_clip, zoneout, cut)


def _derived(key: str, output_clip: float | None, zoneout: bool, cut: bool) -> Cell:
    return variant(cell_of(key), output_clip=output_clip, zoneout=zoneout, cut=cut)


# torch.compile calls it instead of tracing how a cell is made. This is what
# torch.compiler.assume_constant_result does, which would import all of torch._dynamo.
_derived._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose_backend(Wx: Tensor, function: str | Cell = "lstm") -> Choice:
    """What backend="auto" takes for such a tensor [B, T, G_w, N, D] and cell, and why."""
    if Wx.is_cuda:
        return Choice(*gpu_choice(Wx, cell_of(function)))
    if Wx.device.type != "cpu":
        return Choice("reference", f"no fused kernels for device {Wx.device}")
    transform = unsupported_transform()
    if transform is not None:
        return Choice("reference", f"fused kernels do not carry {transform}")
    if Wx.dtype in STORED_IN_16_BITS:
        return Choice("cpu", f"fused C++ kernels take {Wx.dtype} and compute in float32 on a CPU")
    if not _has_kernel(Wx):
        return Choice("reference", f"no fused kernels for {Wx.dtype} on a CPU")
    return Choice("cpu", f"fused C++ kernels carry {Wx.dtype} on a CPU")


def chosen_backend(backend: str, x: Tensor, function: str | Cell = "lstm") -> str:
    """The back end of that name, "auto" resolved; BackendError where none is called so."""
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} does not exist; choose one of {BACKENDS}")
    return choose_backend(x, function).backend if backend == "auto" else backend


def _has_kernel(x: Tensor) -> bool:
    return x.dtype in STORED_IN_16_BITS or any(d.torch == x.dtype for d in BY_NAME.values())


def _check_cpu(x: Tensor, name: str) -> None:
    if x.device.type != "cpu":
        raise DeviceError(f'backend="cpu" needs CPU tensors, {name} is on {x.device}')
    transform = unsupported_transform()
    if transform is not None:
        raise BackendError(
            f'backend="cpu" does not carry {transform}; backend="reference" does, slowly'
        )
    if not _has_kernel(x):
        known = ", ".join((*BY_NAME, *(str(d).removeprefix("torch.") for d in STORED_IN_16_BITS)))
        raise DtypeError(
            f'backend="cpu" has kernels for {known}, {name} is {x.dtype}; '
            'backend="reference" takes any dtype'
        )
