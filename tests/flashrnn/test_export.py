"""torch.export and ONNX: what is exported computes the same, for any batch and time."""

from __future__ import annotations

import io

import onnx
import onnxruntime
import pytest
import torch
from cells_for_tests import independent, peephole, shuffled

import flashrnn
import flashrnn.onnx
from flashrnn.ir.ops import OPS
from flashrnn.onnx_scan import SPELLING

B, T = torch.export.Dim("B"), torch.export.Dim("T")


def flat(x):
    return [x] if isinstance(x, torch.Tensor) else [y for z in x for y in flat(z)]


def exported(model, inputs, path, **rest):
    """The operators of the exported file and its session."""
    flashrnn.onnx.export(model.eval(), inputs, path, verbose=False, **rest)
    graph = onnx.load(path).graph
    return [n.op_type for n in graph.node], onnxruntime.InferenceSession(path)


def same(session, model, *inputs) -> None:
    names = [x.name for x in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in flat(inputs)), strict=True))
    for got, expected in zip(session.run(None, feed), flat(model(*inputs)), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "operator", "count"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}, "LSTM", 4),
        ("GRU", {"num_heads": 2}, "GRU", 2),
        ("RNN", {"nonlinearity": "relu", "bias": False}, "RNN", 1),
        ("SLSTM", {"num_heads": 2, "bidirectional": True}, "Scan", 2),
    ],
)
def test_onnx_with_dynamic_batch_and_time(kind, options, operator, count, tmp_path) -> None:
    torch.manual_seed(0)
    module = getattr(flashrnn.nn, kind)(5, 8, **options)
    used, session = exported(
        module, (torch.randn(7, 3, 5),), tmp_path / "m.onnx", dynamic_shapes=({0: T, 1: B},)
    )
    assert used.count(operator) == count
    with torch.no_grad():
        for t, b in ((7, 3), (4, 2), (11, 6)):
            same(session, module, torch.randn(t, b, 5))


def test_onnx_with_state_and_lengths(tmp_path) -> None:
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = flashrnn.nn.LSTM(5, 8, bidirectional=True, num_heads=2)

        def forward(self, x, h, c, lengths):
            return self.rnn(x, (h, c), lengths=lengths)

    model, state = Model(), (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    inputs = (torch.randn(6, 3, 5), *state, torch.tensor([6, 2, 4]))
    used, session = exported(model, inputs, tmp_path / "m.onnx")
    assert "LSTM" in used
    with torch.no_grad():
        same(session, model, *inputs)
        same(session, model, *inputs[:3], torch.tensor([1, 6, 5]))


class OneLayer(torch.nn.Module):
    """The functional operators with weights of any cell."""

    def __init__(self, cell, products: bool):
        super().__init__()
        g, self.cell, self.products = torch.Generator().manual_seed(0), cell, products
        dense = (6,) if cell.recurrence == "dense" else ()
        self.W = torch.randn(len(cell.input), 2, 6, 5, generator=g)
        self.R = torch.randn(len(cell.recurrent), 2, 6, *dense, generator=g) / 3
        self.b = torch.randn(len(cell.gates), 2, 6, generator=g)
        self.unit = (
            torch.randn(len(cell.parameters), 2, 6, generator=g) if cell.parameters else None
        )

    def forward(self, x, states):
        if not self.products:
            return flashrnn.layer(x, self.W, self.R, self.b, states, self.cell, self.unit)
        wx = torch.nn.functional.linear(x, self.W.flatten(0, 2)).unflatten(2, self.W.shape[:3])
        return flashrnn.flashrnn(
            wx,
            self.R,
            self.b,
            states,
            self.cell,
            parameters=self.unit,
            reverse=True,
            output_clip=0.4,
        )


@pytest.mark.parametrize("cell", [peephole, independent, shuffled], ids=lambda c: c.name)
@pytest.mark.parametrize("products", [False, True])
def test_onnx_of_any_cell(cell, products, tmp_path) -> None:
    model = OneLayer(cell, products)
    inputs = (torch.randn(3, 7, 5), torch.randn(len(cell.states), 3, 1, 2, 6))
    used, session = exported(
        model, inputs, tmp_path / "m.onnx", dynamic_shapes=({0: B, 1: T}, {1: B})
    )
    assert "Scan" in used
    same(session, model, *inputs)
    same(session, model, torch.randn(4, 9, 5), torch.randn(len(cell.states), 4, 1, 2, 6))


def test_a_scan_has_no_lengths(tmp_path) -> None:
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = flashrnn.nn.SLSTM(5, 8)

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)[0]

    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="flashrnn") as caught:
        exported(Model(), (torch.randn(6, 2, 5), torch.tensor([6, 2])), tmp_path / "m.onnx")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, flashrnn.ExportError):
        error = error.__cause__
    assert "slstm becomes an ONNX Scan, which has no lengths" in str(error)


def test_onnx_says_every_operation() -> None:
    assert SPELLING.keys() == OPS.keys()


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_saved_and_loaded(strict) -> None:
    module = flashrnn.nn.LSTM(5, 8, num_layers=2, bidirectional=True)
    program = torch.export.export(
        module, (torch.randn(7, 3, 5),), dynamic_shapes=({0: T, 1: B},), strict=strict
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for t, b in ((7, 3), (12, 5)):
        x = torch.randn(t, b, 5)
        for got, expected in zip(flat(again(x)), flat(module(x)), strict=True):
            assert torch.equal(got, expected)
