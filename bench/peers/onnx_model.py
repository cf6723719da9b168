"""A layer as an ONNX model: one LSTM, GRU or RNN operator with constant weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bench.layers.problem import Problem


@dataclass(frozen=True)
class Operator:
    """An operator, and the gates of its weights in the operator's order."""

    name: str
    input: tuple[str, ...]
    recurrent: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


# onnx.ai/onnx/operators: the gate orders are i o f c and z r h
OPERATORS = {
    "lstm": Operator("LSTM", ("i", "o", "f", "z"), ("i", "o", "f", "z")),
    "gru": Operator("GRU", ("z", "r", "n_in"), ("z", "r", "n_rec"), {"linear_before_reset": 1}),
    "elman": Operator("RNN", ("z",), ("z",), {"activations": ["Tanh"]}),
    "elman_relu": Operator("RNN", ("z",), ("z",), {"activations": ["Relu"]}),
}
OPSET, IR = 17, 8  # old enough for every runtime of the last years
INPUT, OUTPUT = "x", "y"


def model_of(problem: Problem) -> bytes | None:
    """x [T, B, I] -> y [T, 1, B, D] as a serialised model; None where ONNX has no such operator."""
    operator = OPERATORS.get(problem.cell.name)
    if operator is None or problem.dims.N > 1 or "W" not in problem.weights:
        return None
    from onnx import TensorProto, helper, numpy_helper

    cell, dims = problem.cell, problem.dims
    b = problem.weights["b"].flatten(1)
    input_bias = b[[cell.gates.index(g) for g in operator.input]]
    recurrent_bias = b[[cell.gates.index(g) for g in operator.recurrent]]
    for k, gate in enumerate(operator.recurrent):
        if gate in operator.input:  # the first half has it
            recurrent_bias[k] = 0
    W = problem.weights["W"].flatten(1, 2)[[cell.input.index(g) for g in operator.input]]
    R = problem.weights["R"].flatten(1, 2)[[cell.recurrent.index(g) for g in operator.recurrent]]
    arrays = {
        "W": W.flatten(0, 1),
        "R": R.flatten(0, 1),
        "B": torch.cat((input_bias.flatten(), recurrent_bias.flatten())),
    }
    element = numpy_helper.from_array(problem.inputs[:1].numpy()).data_type
    assert element in (TensorProto.FLOAT, TensorProto.DOUBLE)
    node = helper.make_node(
        operator.name, [INPUT, *arrays], [OUTPUT], hidden_size=dims.D, **operator.attributes
    )
    graph = helper.make_graph(
        [node],
        problem.cell.name,
        [helper.make_tensor_value_info(INPUT, element, list(problem.inputs.shape))],
        [helper.make_tensor_value_info(OUTPUT, element, [dims.T, 1, dims.B, dims.D])],
        [numpy_helper.from_array(x[None].numpy(), name) for name, x in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    serialised: bytes = made.SerializeToString()
    return serialised
