"""The generated Triton kernels in Triton's interpreter, against the float64 reference."""

import itertools

import pytest
import torch
from cells_for_tests import ALL
from problems import cast, every_cell, problem, results, run
from test_options import LENGTHS, OPTIONS, chosen

from flashrnn import flashrnn
from flashrnn.cells import elman, elman_relu, gru, lstm, slstm
from flashrnn.emit.triton import IEEE
from flashrnn.runtime import gpu_tensors, triton_kernels
from flashrnn.tiling.triton import AlternatingTiling
from flashrnn.tolerance import compare

pytest.importorskip("triton", reason="Triton is not installed")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LIBRARY = [lstm, gru, elman, elman_relu, slstm]
B, T, D, N = (1, 3, 17), (1, 5), (8, 20, 48, 64), (1, 3)
MATRIX = list(itertools.product(B, T, N, D))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def alternating(monkeypatch):
    """Every problem runs the alternating schedule."""
    monkeypatch.setattr(triton_kernels, "_plans", {})
    tiling = AlternatingTiling(b_per_program=2, d_per_program=16, num_warps=1)
    monkeypatch.setattr(triton_kernels.CELLS, "best", lambda *_: tiling)


def check(cell, arguments) -> None:
    """Results and gradients by the library's tolerance."""
    got = run(cell, arguments, "triton")
    exact = run(cell, cast(arguments, torch.float64), "reference")
    eager = run(cell, arguments, "reference")
    for name in got:
        result = compare(name, got[name], exact[name], eager[name])
        assert result.ok, str(result)


def check_shape(check, cell, shape, dtype) -> None:
    """`check(cell, arguments)` on a problem of that shape.

    The gradient of sLSTM jumps where the exponents of its gates i and f are equal. A problem in 16
    bits may hold a row where they are, within the rounding of what the forward pass saves; on which
    side of the jump eager and a kernel end is chance there. Then other numbers have to do.
    """
    seeds = range(4) if cell is slstm and dtype != torch.float32 else range(1)
    for seed in seeds:
        try:
            check(cell, problem(cell, *shape, dtype, seed))
            return
        except AssertionError as error:
            if seed == seeds[-1] or not str(error).startswith("d_"):
                raise


def representative(cell: int, dtype: int) -> list[tuple[int, ...]]:
    """Shapes for one cell and dtype: over all of them, each size meets each cell and dtype."""
    first = (5 * cell + 7 * dtype) % len(MATRIX)
    return [MATRIX[(first + 31 * k) % len(MATRIX)] for k in range(2)]


def name_of(value) -> str:
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


SAMPLE = [
    (cell, dtype, shape)
    for (i, cell), (j, dtype) in itertools.product(enumerate(LIBRARY), enumerate(DTYPES))
    for shape in representative(i, j)
]


@pytest.mark.parametrize(("cell", "dtype", "shape"), SAMPLE, ids=name_of)
def test_sample_of_the_matrix(cell, dtype, shape) -> None:
    check_shape(check, cell, shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("cell", [lstm, gru, elman, slstm], ids=lambda c: c.name)
@pytest.mark.parametrize("steps", T)
def test_whole_matrix(cell, dtype, steps) -> None:
    """In 16 bits, which the interpreter takes longest for, half of the shapes: each B, N and D
    with every other one of the rest, and what one cell leaves out, another has."""
    side = LIBRARY.index(cell) + DTYPES.index(dtype)
    for b, n, d in itertools.product(B, N, D):
        places = B.index(b) + N.index(n) + D.index(d)
        if dtype == torch.float32 or (places + side) % 2:
            check_shape(check, cell, (b, steps, n, d), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("cell", ALL, ids=lambda c: c.name)
def test_cells_of_a_user(cell, dtype) -> None:
    check(cell, problem(cell, 3, 4, 2, 20, dtype))


@pytest.mark.usefixtures("alternating")
@pytest.mark.parametrize(("cell", "dtype"), [
    (lstm, torch.float32), (gru, torch.float16), (slstm, torch.bfloat16), (ALL[0], torch.float32),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (lstm, torch.bfloat16), (gru, torch.float32), (slstm, torch.float32),
        (ALL[2], torch.bfloat16),
    )),
])  # fmt: skip
def test_alternating(cell, dtype) -> None:
    check(cell, problem(cell, 3, 4, 2, 20, dtype))


@pytest.mark.usefixtures("alternating")
def test_alternating_leaves_the_initial_state_as_it_is() -> None:
    """With one head, h of the first step must not be the caller's memory."""
    p = {k: v.detach() for k, v in problem(lstm, 2, 2, 1, 5, torch.float32).items()}
    before = p["states"].clone()
    flashrnn(**p, function=lstm, backend="triton")
    assert torch.equal(p["states"], before)


def run_options(cell, name: str, T: int) -> None:
    p = problem(cell, 5, T, 2, 5, torch.float32)

    def call(backend: str):
        def run(arguments):
            options = chosen(name, cell, T, arguments["Wx"].dtype)
            return flashrnn(**arguments, function=cell, backend=backend, **options)

        return run

    got = results(call("triton"), p)
    exact = results(call("reference"), cast(p, torch.float64))
    eager = results(call("reference"), p)
    for key in got:
        result = compare(key, got[key], exact[key], eager[key])
        assert result.ok, str(result)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cell", [lstm, ALL[0]], ids=lambda c: c.name)
def test_options(cell, name) -> None:
    run_options(cell, name, 6)


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)
def test_options_of_every_cell(cell, name, T) -> None:
    run_options(cell, name, T)


FEW = [(gru, "lengths"), (gru, "cut"), (ALL[0], "all")]


@pytest.mark.usefixtures("alternating")
@pytest.mark.parametrize(
    ("cell", "name"),
    [
        pytest.param(cell, name, marks=() if (cell, name) in FEW else pytest.mark.slow)
        for cell, name in itertools.product((gru, ALL[0]), OPTIONS)
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_options_of_the_alternating_schedule(cell, name) -> None:
    run_options(cell, name, 6)


@pytest.mark.parametrize("schedule", ["fused", "alternating"])
def test_nothing_past_the_end_is_read(schedule, request) -> None:
    """NaN in the padding of inputs and cotangents reaches no result."""
    if schedule == "alternating":
        request.getfixturevalue("alternating")
    past = torch.arange(6)[None] >= LENGTHS[:, None]
    p = problem(lstm, 5, 6, 2, 5, torch.float32)
    with torch.no_grad():
        p["Wx"][past] = torch.nan
    every, last = flashrnn(**p, lengths=LENGTHS, reverse=True, backend="triton")
    assert (every[:, past] == 0).all()
    assert last.isfinite().all()
    d_every = torch.ones_like(every)
    d_every[:, past] = torch.nan
    grads = torch.autograd.grad((every, last), list(p.values()), (d_every, torch.ones_like(last)))
    for key, grad in zip(p, grads, strict=True):
        assert grad.isfinite().all(), key
    assert (grads[0][past] == 0).all()


def test_a_row_does_not_see_what_others_hold() -> None:
    """NaN in one row, and infinity in R of another head, stay where they are."""
    p = {k: v.detach() for k, v in problem(gru, 3, 4, 2, 20, torch.float32).items()}
    clean, _ = flashrnn(**p, function=gru, backend="triton")
    p["Wx"][1] = torch.nan
    p["R"][:, 1] = torch.inf
    states, _ = flashrnn(**p, function=gru, backend="triton")
    assert torch.equal(states[:, [0, 2], :, 0], clean[:, [0, 2], :, 0])
    assert states[:, 1].isnan().all()


def test_no_bias_no_initial_states_and_some_gradients() -> None:
    p = problem(lstm, 3, 4, 2, 9, torch.float32)
    del p["b"], p["states"]
    check(lstm, p)
    full = problem(lstm, 3, 4, 2, 9, torch.float32)
    expected = run(lstm, full, "triton")["d_R"]
    some = {k: v.detach().requires_grad_(k == "R") for k, v in full.items()}
    states, last = flashrnn(**some, backend="triton")
    g = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(x.shape, generator=g, dtype=torch.float64).float() for x in (states, last)
    ]
    (grad,) = torch.autograd.grad((states, last), [some["R"]], cotangents)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("order", ["time-major", "strided", "unaligned"])
def test_any_memory_order(order) -> None:
    p = problem(lstm, 3, 4, 2, 9, torch.float32)
    x = p["Wx"].detach()
    if order == "time-major":
        view = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif order == "strided":
        view = x.repeat_interleave(2, -1)[..., ::2]
    else:
        view = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    states, _ = flashrnn(view, *list(p.values())[1:], backend="triton")
    expected, _ = flashrnn(**p, backend="triton")
    assert torch.equal(states, expected)
    assert states.transpose(1, 2).is_contiguous() == (order == "time-major")


@pytest.mark.parametrize("name", ["R", "b", "states", "parameters"])
def test_strided_views_are_no_error(name) -> None:
    """Permuted heads: whole rows of D numbers, in another order."""
    cell = ALL[0]
    p = problem(cell, 2, 3, 2, 6, torch.float32)
    x = p[name].detach()
    heads = {"R": 1, "b": 1, "states": 3, "parameters": 1}[name]
    view = x.transpose(0, heads).contiguous().transpose(0, heads).requires_grad_()
    assert not view.is_contiguous()
    check(cell, {**p, name: view})


@pytest.mark.parametrize(("B", "T"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(B, T) -> None:
    p = problem(lstm, B, T, 2, 8, torch.float32)
    states, last = flashrnn(**p, backend="triton")
    assert states.shape == (2, B, T, 2, 8)
    grads = torch.autograd.grad(states.sum() + last.sum(), list(p.values()))
    assert torch.equal(grads[1], torch.zeros_like(grads[1]))
    if T == 0:
        assert torch.equal(last, p["states"])
        assert torch.equal(grads[3], torch.ones_like(grads[3]))


def test_outputs_are_written_everywhere(monkeypatch) -> None:
    """What the kernels fill is full of NaN first."""
    empty = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        x = empty(self, *size, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x, **k: torch.full_like(x, torch.nan, **k))
    check(slstm, problem(slstm, 3, 4, 2, 20, torch.float32))


def test_inference_saves_nothing() -> None:
    from flashrnn.passes.lower import lower
    from flashrnn.runtime import gpu_recurrence

    p = {k: v.detach() for k, v in problem(lstm, 2, 3, 1, 8, torch.float32).items()}
    assert lower(lstm).saved
    seen = []
    shape = gpu_recurrence.saved_shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_recurrence, "saved_shape", lambda *a: seen.append(a) or shape(*a))
        states, _ = flashrnn(**p, backend="triton")
    assert not seen
    assert not states.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("cell", [lstm, ALL[0]], ids=lambda c: c.name)
def test_opcheck(cell) -> None:
    p = problem(cell, 2, 3, 2, 5, torch.float32)
    wx, r, b, initial = p["Wx"], p["R"], p["b"], p["states"]
    rest = (cell.key, None, float("inf"), False, False)
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.triton_recurrence, (wx, r, b, p.get("parameters"), initial, *rest))
    plain = [None if x is None else x.detach() for x in (wx, r, b, p.get("parameters"), initial)]
    torch.library.opcheck(ops.triton_training, (*plain, *rest))
    states, last, saved = ops.triton_training(*plain, *rest)
    need = [True, True, True, bool(cell.parameters), True]
    backward = (plain[1], *plain[3:], states, saved, torch.ones_like(states), last, need, *rest)
    torch.library.opcheck(ops.triton_backward, backward)


def test_a_tile_serves_every_length_and_batch() -> None:
    """T and B are arguments: no other module for another length."""
    before = triton_kernels._plans
    plans = []
    for B_, T_ in ((3, 2), (3, 9)):
        flashrnn(**problem(lstm, B_, T_, 1, 8, torch.float32), backend="triton")
        plans.append(dict(before))
    assert plans[0].keys() == plans[1].keys()


def test_precision_of_float32_is_full_unless_asked() -> None:
    assert gpu_tensors.precision_of(torch.float32) == IEEE
    asked = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert gpu_tensors.precision_of(torch.float32) == "tf32"
        assert gpu_tensors.precision_of(torch.bfloat16) == IEEE
    finally:
        torch.set_float32_matmul_precision(asked)
