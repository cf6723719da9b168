"""ONNX export: cells become LSTM, GRU and RNN where those operators compute the same, else Scan.

`export` is torch.onnx.export with the translations of this library's operators. Each head is an
ONNX operator of its own, since R does not mix heads. `translations` can also be passed by hand:
torch.onnx.export(..., dynamo=True, custom_translation_table=translations()).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch

from flashrnn.cells import elman, elman_relu, gru, lstm
from flashrnn.ir.cell import Cell, cell_of
from flashrnn.onnx_scan import scan

Value = Any  # onnxscript.ir.Value: a symbolic tensor

# The ONNX operator that computes a cell: the gates of W and of R in its order and in our names, and
# its attributes. States are in our order.
_OPERATORS: dict[str, tuple[str, Sequence[str], Sequence[str], dict[str, Any]]] = {
    lstm.key: ("LSTM", "iofz", "iofz", {}),
    gru.key: ("GRU", ("z", "r", "n_in"), ("z", "r", "n_rec"), {"linear_before_reset": 1}),
    elman.key: ("RNN", "z", "z", {"activations": ["Tanh"]}),
    elman_relu.key: ("RNN", "z", "z", {"activations": ["Relu"]}),
}


def export(
    model: torch.nn.Module, args: tuple[Any, ...], f: str | PathLike[str] | None = None, **rest: Any
) -> Any:
    """torch.onnx.export(model, args, f, dynamo=True, **rest) for a model with recurrences in it.

    Put the model into eval() mode first. LSTM, GRU and Elman layers become those ONNX operators,
    other cells, zoneout and output_clip a Scan; lengths become sequence_lens, which a Scan has not.
    Batch and time may be dynamic (`dynamic_shapes`). Raises what torch.onnx.export raises, with an
    ExportError as the cause where ONNX has no equal. Needs the packages onnx and onnxscript.
    """
    table = {**translations(), **(rest.pop("custom_translation_table", None) or {})}
    with torch.no_grad():
        return torch.onnx.export(
            model, args, f, dynamo=True, custom_translation_table=table, **rest
        )


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom_translation_table of torch.onnx.export for this library's operators."""
    ops = torch.ops.flashrnn
    return {ops.layer.default: _layer, ops.recurrence.default: _recurrence}


def _layer(
    x: Value, w: Value, r: Value, bias: Value, parameters: Value, initial: Value, cell: str,
    lengths: Value, clip: float, cut: bool, reverse: bool,
) -> tuple[Value, Value]:  # fmt: skip
    """h [B, T, N, D] and last [S, B, 1, N, D] from x [B, T, I]; clip and cut act on gradients."""
    op, declared = _operators(), cell_of(cell)
    sequence = op.Transpose(x, perm=[1, 0, 2])
    if declared.key in _OPERATORS:
        every, last = _heads(op, declared, sequence, w, r, bias, initial, lengths, reverse)
    else:
        G, N, D, I = w.shape
        columns = op.Transpose(op.Reshape(w, ints(op, G * N * D, I)), perm=[1, 0])
        wx = op.Reshape(op.MatMul(sequence, columns), ints(op, 0, 0, G, N, D))
        states, last = scan(op, declared, wx, r, bias, parameters, initial, lengths, reverse)
        every = op.Gather(states, op.Constant(value_int=0), axis=0)
    return op.Transpose(every, perm=[1, 0, 2, 3]), last


def _recurrence(
    wx: Value, r: Value, bias: Value, parameters: Value, initial: Value, cell: str,
    lengths: Value, clip: float, cut: bool, reverse: bool,
) -> tuple[Value, Value]:  # fmt: skip
    """states [S, B, T, N, D] and last [S, B, 1, N, D] from Wx [B, T, G_w, N, D]."""
    op = _operators()
    sequence = op.Transpose(wx, perm=[1, 0, 2, 3, 4])
    states, last = scan(op, cell_of(cell), sequence, r, bias, parameters, initial, lengths, reverse)
    return op.Transpose(states, perm=[0, 2, 1, 3, 4]), last


def _heads(
    op: Any, cell: Cell, x: Value, w: Value, r: Value, bias: Value, initial: Value,
    lengths: Value, reverse: bool,
) -> tuple[Value, Value]:  # fmt: skip
    """One operator per head: h [T, B, N, D] and last [S, B, 1, N, D] from x [T, B, I]."""
    name, inputs, recurrents, attributes = _OPERATORS[cell.key]
    _, N, D, I = w.shape
    ends = None if lengths is None else op.Cast(lengths, to=6)  # int32
    outputs, finals = [], []
    for n in range(N):
        head = op.Constant(value_int=n)
        W = op.Reshape(_gates(op, w, cell.input, inputs, head), ints(op, 1, -1, I))
        R = op.Reshape(_gates(op, r, cell.recurrent, recurrents, head), ints(op, 1, -1, D))
        B = None if bias is None else _bias(op, cell, bias, inputs, recurrents, head)
        before = []
        if initial is not None:
            of_head = op.Gather(initial, head, axis=3)  # [S, B, 1, D]
            before = [
                op.Transpose(op.Gather(of_head, op.Constant(value_int=s), axis=0), perm=[1, 0, 2])
                for s in range(len(cell.states))
            ]
        every, *last = getattr(op, name)(
            x, W, R, B, ends, *before, hidden_size=D,
            direction="reverse" if reverse else "forward", **attributes,
        )  # fmt: skip
        outputs.append(op.Transpose(every, perm=[0, 2, 1, 3]))  # [T, B, 1, D]
        stacked = op.Concat(*last, axis=0)  # [S, B, D]
        finals.append(op.Unsqueeze(stacked, ints(op, 2, 3)))
    return op.Concat(*outputs, axis=2), op.Concat(*finals, axis=3)


def _gates(op: Any, x: Value, have: Sequence[str], want: Sequence[str], head: Value) -> Value:
    """The wanted gates of one head of x [G, N, ...], in the wanted order."""
    order = op.Constant(value_ints=[list(have).index(g) for g in want])
    return op.Gather(op.Gather(x, order, axis=0), head, axis=1)


def _bias(
    op: Any, cell: Cell, bias: Value, inputs: Sequence[str], recurrents: Sequence[str], head: Value
) -> Value:
    """[1, 2 G D]: what ONNX adds to W x and to R h; what we add to their sum counts once."""
    b_in = _gates(op, bias, cell.gates, inputs, head)
    b_rec = _gates(op, bias, cell.gates, recurrents, head)
    own = [[0.0 if a == b else 1.0] for a, b in zip(inputs, recurrents, strict=True)]
    keep = op.Reshape(op.Constant(value_floats=[o[0] for o in own]), ints(op, -1, 1))
    both = op.Concat(b_in, op.Mul(b_rec, op.CastLike(keep, b_rec)), axis=0)
    return op.Reshape(both, ints(op, 1, -1))


def ints(op: Any, *values: int) -> Value:
    """A constant list of integers."""
    return op.Constant(value_ints=[int(v) for v in values])


def _operators() -> Any:
    from onnxscript import opset18

    return opset18
