"""The cases: every peer computes what ours does, and who does not is found before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import flashrnn.cells
from bench import peers
from bench.errors import Disagreement, MissingPeer, PeerFailed, UnknownChoice
from bench.layers.cases import Case, Judges, case_of, verify
from bench.layers.goals import GOALS
from bench.layers.plan import every_subject, subject
from bench.layers.problem import (
    FIRST_LAYER,
    FORWARD,
    INNER_LAYER,
    KINDS,
    Contender,
    Kind,
    Problem,
    Subject,
    flops,
    problem_of,
    traffic,
    wanted,
)
from bench.peers import PEERS
from bench.shapes import Shape
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32

SHAPE = Shape(2, 5, 8)
LSTM = subject("lstm", 1)
INSTALLED = [name for name, peer in PEERS.items() if all(map(find_spec, peer.needs))]
QUICK_PEERS = [name for name in INSTALLED if name != "compile"]  # that one takes a minute


@pytest.fixture(scope="module")
def lstm() -> tuple[Problem, Judges]:
    problem = problem_of(LSTM, SHAPE.dims(1), FLOAT32)
    return problem, Judges.of(problem)


def offers(*names: str) -> dict[str, peers.Offer]:
    return peers.load(names)[0]


def case(problem: Problem, kind: Kind, *names: str) -> Case:
    return case_of(problem, kind, 1, offers(*names))


def distorted(one: Contender, change: Callable[[torch.Tensor], torch.Tensor]) -> Contender:
    """Another h, everything else as it is."""
    return replace(one, read=lambda raw: {**one.read(raw), "h": change(one.read(raw)["h"])})


def subjects() -> list[Any]:
    """The cells of the goals; the others, which every peer gets by the same way, where slow."""
    return [
        pytest.param(s, id=s.label, marks=[] if s.cell.name in GOALS else [pytest.mark.slow])
        for s in every_subject()
    ]


@pytest.mark.parametrize("one", subjects())
def test_every_peer_computes_every_cell(one: Subject) -> None:
    problem = problem_of(one, SHAPE.dims(one.heads), FLOAT32)
    judges = Judges.of(problem)
    for kind in (FORWARD, INNER_LAYER):
        found = verify(case(problem, kind, *QUICK_PEERS), judges)
        assert {"flashrnn", "eager loop"} <= found.keys()
        for label, compared in found.items():
            assert 0 < compared.error < 1e-5, f"{label} {kind.label}: {compared}"


@pytest.mark.parametrize(
    ("cell", "kind", "expected"),
    [
        ("lstm", FORWARD, {"torch.nn.LSTM", "eager loop", "onnxruntime", "openvino", "jax"}),
        ("gru", FORWARD, {"torch.nn.GRU", "eager loop", "onnxruntime", "openvino", "jax"}),
        ("elman_relu", INNER_LAYER, {"torch.nn.RNN", "eager loop", "jax"}),
        ("slstm", FORWARD, {"eager loop", "jax"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_who_offers_what(cell: str, kind: Kind, expected: set[str]) -> None:
    problem = problem_of(subject(cell, 1), SHAPE.dims(1), FLOAT32)
    made = case(problem, kind, *QUICK_PEERS)
    installed = {PEERS[name].label.partition(".")[0] for name in QUICK_PEERS}
    expected = {label for label in expected if label.partition(".")[0] in installed}
    found = {one.label.replace("jax.lax.scan", "jax") for one in made.contenders[1:]}
    assert found == expected


@pytest.mark.slow
def test_the_compiled_loop() -> None:
    """In pieces, the last one shorter."""
    problem = problem_of(subject("gru", 1), Shape(2, 11, 8).dims(1), FLOAT32)
    judges = Judges.of(problem)
    for kind in (FORWARD, INNER_LAYER):
        assert "torch.compile" in verify(case(problem, kind, "compile"), judges)
    long = problem_of(subject("gru", 1), Shape(1, 129, 8).dims(1), FLOAT32)
    assert len(case(long, FORWARD, "compile").contenders) == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_computes_its_results_on_all_sides(lstm: tuple[Problem, Judges], kind: Kind) -> None:
    names = wanted(lstm[0], kind)
    assert names == {"h"} | ({"d_W", "d_R", "d_b"} if kind.d_weights else set()) | (
        {"d_x"} if kind.d_inputs else set()
    )
    for one in case(lstm[0], kind, "nn", "loop").contenders:
        assert one.read(one.call()).keys() == names, one.label


def test_gradients_do_not_add_up_from_call_to_call(lstm: tuple[Problem, Judges]) -> None:
    for one in case(lstm[0], INNER_LAYER, "nn", "loop").contenders:
        first = {name: t.clone() for name, t in one.read(one.call()).items()}
        second = one.read(one.call())
        for name, t in first.items():
            assert torch.allclose(t, second[name], rtol=1e-6), f"{one.label} {name}"


def test_inference_records_no_graph(lstm: tuple[Problem, Judges]) -> None:
    for one in case(lstm[0], FORWARD, "nn", "loop").contenders:
        assert not one.call().requires_grad, one.label


def test_ours_is_held_to_the_library_s_tolerance(lstm: tuple[Problem, Judges]) -> None:
    made = case(lstm[0], FORWARD)
    wrong = replace(made, contenders=(distorted(made.contenders[0], lambda h: h * (1 + 1e-4)),))
    with pytest.raises(Disagreement, match=r"flashrnn is wrong in lstm B=2 T=5 .*h: error"):
        verify(wrong, lstm[1])


def test_a_peer_may_round_otherwise_but_not_compute_otherwise(
    lstm: tuple[Problem, Judges],
) -> None:
    made = case(lstm[0], FORWARD, "nn")
    ours, peer = made.contenders

    def with_error(error: float) -> Case:
        return replace(made, contenders=(ours, distorted(peer, lambda h: h * (1 + error))))

    assert 5e-5 < verify(with_error(1e-4), lstm[1])["torch.nn.LSTM"].error < 2e-4
    with pytest.raises(Disagreement, match=r"torch\.nn\.LSTM is wrong"):
        verify(with_error(1e-2), lstm[1])


def test_a_missing_or_wrong_gradient_is_found(lstm: tuple[Problem, Judges]) -> None:
    made = case(lstm[0], FIRST_LAYER, "loop")
    ours, loop = made.contenders

    def without(raw: Any) -> dict[str, torch.Tensor]:
        return {name: x for name, x in loop.read(raw).items() if name != "d_R"}

    def doubled(raw: Any) -> dict[str, torch.Tensor]:
        return {**loop.read(raw), "d_R": 2 * loop.read(raw)["d_R"]}

    with pytest.raises(Disagreement, match="not everyone computes d_R"):
        verify(replace(made, contenders=(ours, replace(loop, read=without))), lstm[1])
    with pytest.raises(Disagreement, match=r"eager loop is wrong .* d_R"):
        verify(replace(made, contenders=(ours, replace(loop, read=doubled))), lstm[1])


def test_a_peer_that_raises_is_named(lstm: tuple[Problem, Judges]) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of order")

    with pytest.raises(PeerFailed, match=r"other failed in lstm B=2 T=5 .*out of order; --peers"):
        case_of(lstm[0], FORWARD, 1, {"other": broken})
    made = case(lstm[0], FORWARD, "loop")
    ours, loop = made.contenders
    with pytest.raises(PeerFailed, match="eager loop failed"):
        verify(replace(made, contenders=(ours, replace(loop, call=broken))), lstm[1])
    with pytest.raises(RuntimeError, match="out of order"):
        verify(replace(made, contenders=(replace(ours, call=broken), loop)), lstm[1])


def test_the_work_of_a_case() -> None:
    dims = Dims(2, 5, 1, 8)
    forward = 2 * 2 * 5 * (4 * 8 * 8 + 4 * 8 * 8)  # two per multiply-add, of R h and W x
    assert flops(LSTM, dims, FORWARD) == forward
    assert flops(LSTM, dims, INNER_LAYER) == 3 * forward
    assert flops(LSTM, dims, FIRST_LAYER) == 3 * forward - forward // 2
    slstm = subject("slstm", 4)
    assert flops(slstm, Dims(2, 5, 4, 2), FORWARD) == 2 * 2 * 5 * 4 * 4 * 2 * 2
    # R in each of 5 steps, W, x and h once
    assert traffic(LSTM, dims, FORWARD, 4) == 4 * (5 * 256 + 256 + 80 + 80)


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(PEERS["jax"], needs=("no_such_module",))
    monkeypatch.setitem(PEERS, "jax", gone)
    found, missing = peers.load(None)
    assert "jax" not in found and "loop" in found
    assert [one.label for one in missing if "no_such_module" in one.why] == ["jax.lax.scan"]
    with pytest.raises(MissingPeer, match=r"'jax' needs no_such_module .*pip install"):
        peers.load(["loop", "jax"])
    with pytest.raises(UnknownChoice, match="no peer is called 'jaxx'; known: nn, loop"):
        peers.load(["jaxx"])


def test_every_cell_of_the_library_takes_part() -> None:
    found = {one.cell.name for one in every_subject()}
    assert found == set(flashrnn.cells.__all__)
