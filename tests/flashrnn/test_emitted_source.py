"""The emitted C++ as it is read: `pytest --update-golden` writes the files anew."""

import pytest

from flashrnn import cells
from flashrnn.dtypes import FLOAT32, FLOAT64
from flashrnn.emit.cpp import BACKWARD, FORWARD, emit_kernel
from flashrnn.passes.lower import lower

CASES = [
    (cells.lstm, FORWARD, FLOAT32),
    (cells.lstm, BACKWARD, FLOAT32),
    (cells.gru, FORWARD, FLOAT32),
    (cells.slstm, BACKWARD, FLOAT64),
    (cells.peephole_lstm, BACKWARD, FLOAT32),
    (cells.indrnn, FORWARD, FLOAT64),
]


def source(cell, direction, dtype) -> str:
    return emit_kernel(
        lower(cell), direction, dtype, vector_bytes=32, b_per_register=4, d_per_register=16
    )


@pytest.mark.parametrize(("cell", "direction", "dtype"), CASES, ids=lambda v: getattr(v, "name", v))
def test_golden(cell, direction, dtype, golden_text) -> None:
    text = source(cell, direction, dtype)
    golden_text(f"cpp/{cell.name}-{direction}-{dtype.name}.cpp", text)


@pytest.mark.parametrize("name", cells.__all__)
def test_readable(name) -> None:
    for direction in (FORWARD, BACKWARD):
        text = source(getattr(cells, name), direction, FLOAT32)
        assert text.startswith(
            f"// {name}, {direction}, float32: generated from the cell's equations.\n"
            "// Tiling: 4 rows x 16 units in registers.\n"
        )
        assert max(map(len, text.splitlines())) <= 100
        assert not any(line != line.rstrip() for line in text.splitlines())
