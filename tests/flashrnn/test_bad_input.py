"""Bad arguments: typed errors that name the argument and both values."""

import pytest
import torch
from problems import problem
from torch.testing._internal.two_tensor import TwoTensor

from flashrnn import choose_backend, flashrnn, layer, linear_scan, nn, scan_attention
from flashrnn.cells import lstm, peephole_lstm
from flashrnn.errors import (
    BackendError,
    DeviceError,
    DtypeError,
    FlashRNNError,
    InputError,
    ShapeError,
    UnknownFunctionError,
)
from flashrnn.runtime import cuda_driver, triton_launch

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
        ({"backend": "opencl"}, BackendError, "'opencl' does not exist"),
        ({"function": peephole_lstm}, ShapeError, "p_i, p_f, p_o"),
    ],
)
def test_flashrnn(changed, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        flashrnn(**{**GOOD, **changed})
    assert isinstance(caught.value, FlashRNNError)


def test_a_backend_that_cannot_run_is_an_error_and_auto_says_why() -> None:
    tiny = {k: v.to(torch.float8_e5m2) for k, v in GOOD.items()}
    with pytest.raises(DtypeError, match=r"float32, float64, bfloat16, float16.*float8.*reference"):
        flashrnn(**tiny, backend="cpu")
    choice = choose_backend(tiny["Wx"])
    assert choice.backend == "reference"
    assert "float8" in choice.reason
    assert choose_backend(GOOD["Wx"]).backend == "cpu"
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_storage(dtype) -> None:
    """Converted, computed in float32 and rounded: results, and gradients too."""
    narrow = {k: v.to(dtype).requires_grad_() for k, v in GOOD.items()}
    wide = {k: v.detach().float().requires_grad_() for k, v in narrow.items()}
    assert choose_backend(narrow["Wx"]).backend == "cpu"
    found = []
    for arguments in (narrow, wide):
        states, last = flashrnn(**arguments)
        grads = torch.autograd.grad(last.float().sum(), list(arguments.values()))
        found.append((states, last, *grads))
    for got, expected in zip(*found, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, expected.to(dtype))


def test_a_layer_on_every_back_end() -> None:
    arguments = {k: v for k, v in GOOD.items() if k != "Wx"}
    x, W = torch.randn(2, 3, 5), torch.randn(4, 2, 4, 5)
    expected, last = layer(x, W, **arguments, backend="reference")
    for backend in ("auto", "cpu"):
        h, final = layer(x, W, **arguments, backend=backend)
        torch.testing.assert_close(h, expected)
        torch.testing.assert_close(final, last)
    with pytest.raises(BackendError, match="'opencl' does not exist"):
        layer(x, W, **arguments, backend="opencl")
    meta = {k: v.to("meta") for k, v in arguments.items()}
    with pytest.raises(DeviceError, match="x is on meta"):
        layer(x.to("meta"), W.to("meta"), **meta, backend="cpu")


# Tensors without memory of their own: kernels would read at null.
WRAPPED = {
    "flashrnn": lambda wrap: flashrnn(wrap(GOOD["Wx"]), GOOD["R"]),
    "R": lambda wrap: flashrnn(GOOD["Wx"], wrap(GOOD["R"])),
    "with gradients": lambda wrap: flashrnn(GOOD["Wx"], wrap(GOOD["R"]).requires_grad_()),
    "layer": lambda wrap: layer(torch.ones(2, 3, 5), wrap(torch.ones(4, 2, 4, 5)), GOOD["R"]),
    "attention": lambda wrap: scan_attention(wrap(torch.ones(1, 3, 2)), torch.ones(1, 3, 2, 4)),
    "its state": lambda wrap: scan_attention(
        torch.ones(1, 3, 2),
        torch.ones(1, 3, 2, 4),
        (torch.ones(1, 2), wrap(torch.ones(1, 2)), torch.ones(1, 2, 4)),
    ),
    "linear scan": lambda wrap: linear_scan(wrap(torch.ones(1, 3, 4)), torch.ones(1, 3, 4)),
}


def module_of(wrap):
    module = nn.LSTM(3, 4)
    module.weight_hh_l0 = torch.nn.Parameter(wrap(module.weight_hh_l0.detach()))
    return module(torch.ones(2, 1, 3))


@pytest.mark.parametrize("call", [*WRAPPED.values(), module_of], ids=[*WRAPPED, "module"])
def test_wrappers_of_tensors_are_refused(call) -> None:
    call(lambda x: x)  # of a known form
    for _ in range(2):
        with pytest.raises(BackendError, match=r"TwoTensor \(.*\) has none of its own"):
            call(lambda x: TwoTensor(x, x))


@pytest.mark.parametrize("pack", [lambda x: cuda_driver.pack([x]), triton_launch.in_rows])
def test_wrappers_are_refused_where_arguments_of_a_gpu_are_packed(pack) -> None:
    pack(GOOD["R"])
    with pytest.raises(BackendError, match="has none of its own"):
        pack(TwoTensor(GOOD["R"], GOOD["R"]))


def test_wrappers_may_go_by_the_reference() -> None:
    wrapped = TwoTensor(GOOD["Wx"], 2 * GOOD["Wx"])
    got, _ = flashrnn(wrapped, GOOD["R"], backend="reference")
    for part, Wx in ((got.a, GOOD["Wx"]), (got.b, 2 * GOOD["Wx"])):
        torch.testing.assert_close(part, flashrnn(Wx, GOOD["R"], backend="reference")[0])


CHECKED = {name: call for name, call in WRAPPED.items() if name != "its state"}


@pytest.mark.parametrize("call", CHECKED.values(), ids=CHECKED)
def test_sparse_tensors_are_refused(call) -> None:
    call(lambda x: x)
    with pytest.raises(
        ShapeError, match=r"must be a dense tensor, its layout is torch\.sparse_coo"
    ):
        call(lambda x: x.to_sparse())


def test_sparse_and_nested_inputs_of_modules_are_refused() -> None:
    module = nn.LSTM(3, 4, batch_first=True)
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    for x in (torch.ones(2, 2, 3).to_sparse(), nested):
        with pytest.raises(InputError, match="must be a dense tensor, its layout is torch"):
            module(x)
