"""Any cell as an ONNX Scan, whose body is the cell's own expressions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from flashrnn.errors import ExportError
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.ir.expression import CONSTANT, INPUT, walk

Value = Any

# The ONNX operators of an operation, the last one applied last.
SPELLING: dict[str, tuple[str, ...]] = {
    "add": ("Add",),
    "sub": ("Sub",),
    "mul": ("Mul",),
    "div": ("Div",),
    "neg": ("Neg",),
    "exp": ("Exp",),
    "sigmoid": ("Sigmoid",),
    "tanh": ("Tanh",),
    "log_sigmoid": ("Neg", "Softplus", "Neg"),
    "maximum": ("Max",),
    "minimum": ("Min",),
    "stop_gradient": ("Identity",),
    "equal": ("Equal",),
    "less": ("Less",),
    "less_equal": ("LessOrEqual",),
    "where": ("Where",),
}

_names = itertools.count()


def scan(
    op: Any, cell: Cell, wx: Value, r: Value, bias: Value, parameters: Value, initial: Value,
    lengths: Value, reverse: bool,
) -> tuple[Value, Value]:  # fmt: skip
    """states [S, T, B, N, D] and last [S, B, 1, N, D] from wx [T, B, G_w, N, D]."""
    if lengths is not None:
        raise ExportError(
            f"the cell {cell.name} becomes an ONNX Scan, which has no lengths: export a call "
            "without lengths and without a PackedSequence"
        )
    S, N, D = len(cell.states), r.shape[1], r.shape[2]
    by_head = op.Transpose(wx, perm=[0, 2, 3, 1, 4])  # [T, G_w, N, B, D]
    if initial is None:
        batch = op.Shape(wx, start=1, end=2)
        size = op.Concat(op.Constant(value_ints=[S, N]), batch, op.Constant(value_ints=[D]), axis=0)
        start = op.Expand(op.CastLike(op.Constant(value_float=0.0), wx), size)
    else:
        squeezed = op.Squeeze(initial, op.Constant(value_ints=[2]))
        start = op.Transpose(squeezed, perm=[0, 2, 1, 3])  # [S, N, B, D]
    body = _Body(r.dtype)
    states = [body.value() for _ in range(S)]
    step = body.value()
    weights = _weights(op, cell, r, bias, parameters)
    new = _step(body, cell, states, step, weights)
    outer = _call_scan(
        [*(op.Gather(start, op.Constant(value_int=s), axis=0) for s in range(S)), by_head],
        2 * S,
        body=body.graph([*states, step], [*new, *(body.node("Identity", x) for x in new)]),
        num_scan_inputs=1,
        scan_input_directions=[int(reverse)],
        scan_output_directions=[int(reverse)] * S,
    )
    one = op.Constant(value_ints=[0])
    last = op.Concat(*(op.Unsqueeze(x, one) for x in outer[:S]), axis=0)  # [S, N, B, D]
    every = op.Concat(*(op.Unsqueeze(x, one) for x in outer[S:]), axis=0)  # [S, T, N, B, D]
    final = op.Unsqueeze(op.Transpose(last, perm=[0, 2, 1, 3]), op.Constant(value_ints=[2]))
    return op.Transpose(every, perm=[0, 1, 3, 2, 4]), final


def _call_scan(inputs: list[Value], outputs: int, **attributes: Any) -> Any:
    """Record a Scan node; onnxscript's own call does not know how many outputs it has."""
    import onnx_ir as ir
    from torch.onnx._internal.exporter import _core

    made = ir.node("Scan", inputs, attributes=attributes, num_outputs=outputs)
    _core.current_tracer.nodes.append(made)
    return made.outputs


class _Body:
    """The nodes of a Scan's body. Values of the graph around it may be used in it."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._nodes: list[Any] = []

    def value(self) -> Value:
        import onnx_ir as ir

        return ir.Value(name=f"flashrnn_{next(_names)}", type=ir.TensorType(self._dtype))

    def node(self, name: str, *inputs: Value, **attributes: Any) -> Value:
        import onnx_ir as ir

        made = ir.node(name, list(inputs), attributes=attributes)
        made.outputs[0].name = f"flashrnn_{next(_names)}"
        self._nodes.append(made)
        return made.outputs[0]

    def constant(self, value: float) -> Value:
        import onnx_ir as ir

        number = np.array(value, dtype=self._dtype.numpy())
        return self.node("Constant", value=ir.tensor(number))

    def index(self, x: Value, k: int) -> Value:
        """x[k]."""
        import onnx_ir as ir

        at = self.node("Constant", value=ir.tensor(np.array(k, dtype=np.int64)))
        return self.node("Gather", x, at, axis=0)

    def graph(self, inputs: list[Value], outputs: list[Value]) -> Any:
        import onnx_ir as ir

        for x in outputs:
            x.type = ir.TensorType(self._dtype)
        return ir.Graph(
            inputs, outputs, nodes=self._nodes, name=f"step_{next(_names)}", opset_imports={"": 18}
        )


def _weights(
    op: Any, cell: Cell, r: Value, bias: Value, parameters: Value
) -> dict[tuple[str, str], Value]:
    """What every step uses, computed before the loop; per unit [N, 1, D], products [N, P, D]."""

    def each(kind: str, x: Value, names: tuple[str, ...]) -> dict[tuple[str, str], Value]:
        middle = op.Constant(value_ints=[1])
        return {
            (kind, name): op.Unsqueeze(op.Gather(x, op.Constant(value_int=k), axis=0), middle)
            for k, name in enumerate(names)
        }

    found = {} if bias is None else each("bias", bias, cell.gates)
    if parameters is not None:
        found |= each("parameter", parameters, cell.parameters)
    if cell.recurrence != DENSE:
        return found | each("recurrent", r, cell.recurrent)
    for k, name in enumerate(cell.recurrent):
        gate = op.Gather(r, op.Constant(value_int=k), axis=0)
        found["product", name] = op.Transpose(gate, perm=[0, 2, 1])
    return found


def _step(
    body: _Body,
    cell: Cell,
    states: list[Value],
    wx: Value,
    weights: dict[tuple[str, str], Value],
) -> list[Value]:
    """New states [N, B, D] from the ones before and wx [G_w, N, B, D]."""
    inputs = {("state", name): s for name, s in zip(cell.states, states, strict=True)} | weights
    for name in cell.gates:
        terms = []
        if name in cell.input:
            terms.append(body.index(wx, cell.input.index(name)))
        if ("product", name) in weights:
            terms.append(body.node("MatMul", states[0], weights["product", name]))
        if ("bias", name) in weights:
            terms.append(weights["bias", name])
        total = terms[0] if terms else body.constant(0.0)
        for term in terms[1:]:
            total = body.node("Add", total, term)
        inputs["gate", name] = total
    values: dict[Any, Value] = {}
    for node in walk(cell.new_states):
        if node.op == CONSTANT:
            values[node] = body.constant(node.value)
        elif node.op == INPUT:
            values[node] = inputs[node.kind, node.name]
        elif node.op in SPELLING:
            first, *rest = SPELLING[node.op]
            x = body.node(first, *(values[a] for a in node.arguments))
            for name in rest:
                x = body.node(name, x)
            values[node] = x
        else:
            raise ExportError(f"the cell {cell.name} uses {node.op}, which ONNX cannot say")
    # a state may be a value that does not fill [N, B, D], or one that came in
    return [body.node("Add", values[e], body.node("Sub", s, s)) for e, s in
            zip(cell.new_states, states, strict=True)]  # fmt: skip
