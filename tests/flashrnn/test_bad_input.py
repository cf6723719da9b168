"""Bad arguments: typed errors that name the argument and both values."""

import pytest
import torch
from problems import problem

from flashrnn import choose_backend, flashrnn, layer
from flashrnn.cells import lstm, peephole_lstm
from flashrnn.errors import (
    BackendError,
    DeviceError,
    DtypeError,
    FlashRNNError,
    ShapeError,
    UnknownFunctionError,
)

GOOD = {k: v.detach() for k, v in problem(lstm, 2, 3, 2, 4, torch.float32).items()}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            {"Wx": torch.zeros(2, 3, 4, 8)},
            ShapeError,
            r"Wx must be \[B, T, G_w, N, D\].*\(2, 3, 4, 8\)",
        ),
        (
            {"Wx": torch.zeros(2, 3, 3, 2, 4)},
            ShapeError,
            r"Wx.*\(2, 3, 3, 2, 4\).*\(2, 3, 4, 2, 4\)",
        ),
        ({"Wx": torch.zeros(2, 3, 4, 2, 0)}, ShapeError, "D = 0"),
        (
            {"R": torch.zeros(4, 2, 4, 5)},
            ShapeError,
            r"R \[G_r, N, D, P\].*\(4, 2, 4, 5\).*\(4, 2, 4, 4\)",
        ),
        ({"R": torch.zeros(4, 2, 4)}, ShapeError, r"R .*\(4, 2, 4\)"),
        ({"R": torch.zeros(4, 1, 4, 4)}, ShapeError, r"R .*\(4, 1, 4, 4\)"),
        ({"b": torch.zeros(4, 8)}, ShapeError, r"b \[G, N, D\] is \(4, 8\)"),
        (
            {"states": torch.zeros(2, 3, 1, 2, 4)},
            ShapeError,
            r"states.*\(2, 3, 1, 2, 4\).*\(2, 2, 1, 2, 4\)",
        ),
        ({"states": torch.zeros(1, 2, 1, 2, 4)}, ShapeError, "states"),
        ({"parameters": torch.zeros(1, 2, 4)}, ShapeError, "parameters"),
        (
            {"R": torch.zeros(4, 2, 4, 4, dtype=torch.float64)},
            DtypeError,
            "R is torch.float64.*Wx is torch.float32",
        ),
        ({"b": torch.zeros(4, 2, 4, dtype=torch.int32)}, DtypeError, "b must be floating point"),
        (
            {"R": torch.zeros(4, 2, 4, 4, device="meta")},
            DeviceError,
            "R is on meta, but Wx is on cpu",
        ),
        ({"R": "R"}, ShapeError, "R must be a tensor, got str"),
        ({"function": "lstn"}, UnknownFunctionError, "'lstn'; known: .*lstm"),
        ({"backend": "cuda"}, BackendError, "'cuda' does not exist"),
        ({"function": peephole_lstm}, ShapeError, "p_i, p_f, p_o"),
    ],
)
def test_flashrnn(changed, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        flashrnn(**{**GOOD, **changed})
    assert isinstance(caught.value, FlashRNNError)


def test_a_backend_that_cannot_run_is_an_error_and_auto_says_why() -> None:
    half = {k: v.bfloat16() for k, v in GOOD.items()}
    with pytest.raises(DtypeError, match=r"float32, float64.*bfloat16.*reference"):
        flashrnn(**half, backend="cpu")
    choice = choose_backend(half["Wx"])
    assert choice.backend == "reference"
    assert "bfloat16" in choice.reason
    assert choose_backend(GOOD["Wx"]).backend == "cpu"
    states, _ = flashrnn(**half)
    assert states.dtype == torch.bfloat16
    meta = {k: v.to("meta") for k, v in GOOD.items()}
    with pytest.raises(DeviceError, match="Wx is on meta"):
        flashrnn(**meta, backend="cpu")


@pytest.mark.parametrize(
    ("x", "W", "error", "words"),
    [
        (
            torch.zeros(3, 2),
            torch.zeros(4, 2, 4, 2),
            ShapeError,
            r"x must be \[B, T, I\].*\(3, 2\)",
        ),
        (torch.zeros(2, 3, 5), torch.zeros(4, 2, 4, 6), ShapeError, r"I = 5.*\(4, 2, 4, 6\)"),
        (torch.zeros(2, 3, 5), torch.zeros(3, 2, 4, 5), ShapeError, r"needs \(2, 3, 4, 2, 4\)"),
        (torch.zeros(2, 3, 5), torch.zeros(4, 2, 4, 5).double(), DtypeError, "W is torch.float64"),
        (None, torch.zeros(4, 2, 4, 5), ShapeError, "x must be"),
    ],
)
def test_layer(x, W, error, words) -> None:
    with pytest.raises(error, match=words):
        layer(x, W, GOOD["R"], GOOD["b"], GOOD["states"])
