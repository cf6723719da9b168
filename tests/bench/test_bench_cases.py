"""The cases: what a call computes, and that a wrong implementation is found before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench import layers
from bench.cases import FIRST_LAYER, FORWARD, INNER_LAYER, KINDS, Case, Kind, case_of, verify
from bench.errors import Disagreement
from bench.layers import Layer, Weights
from flashrnn.dims import Dims
from flashrnn.dtypes import FLOAT32, FLOAT64, Dtype

DIMS = Dims(B=2, T=5, N=1, D=8)


def distort(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Let one implementation return something else."""
    original = getattr(layers, name)

    def distorted(weights: Weights) -> Layer:
        made: Layer = original(weights)
        run = made.run
        return replace(made, run=lambda x: change(run(x)))

    monkeypatch.setattr(layers, name, distorted)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=lambda d: d.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.label)
def test_all_implementations_agree(kind: Kind, dtype: Dtype) -> None:
    found = verify(case_of(DIMS, dtype, kind))
    assert list(found) == ["flashrnn", "torch.nn.LSTM", "eager loop"]
    bound = 2e-5 if dtype is FLOAT32 else 1e-12
    assert 0 < found["flashrnn"].error < bound


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (FORWARD, {"h"}),
        (FIRST_LAYER, {"h", "d_W", "d_R", "d_b"}),
        (INNER_LAYER, {"h", "d_W", "d_R", "d_b", "d_x"}),
    ],
)
def test_a_kind_computes_its_results_on_all_sides(kind: Kind, names: set[str]) -> None:
    case = case_of(DIMS, FLOAT32, kind)
    for contender in (*case.contenders, case.exact):
        assert contender.call().keys() == names, contender.label


def test_gradients_do_not_add_up_from_call_to_call() -> None:
    for contender in case_of(DIMS, FLOAT32, INNER_LAYER).contenders:
        first = {name: t.clone() for name, t in contender.call().items()}
        second = contender.call()
        for name, t in first.items():
            assert torch.allclose(t, second[name], rtol=1e-6), f"{contender.label} {name}"


def test_inference_records_no_graph() -> None:
    for contender in case_of(DIMS, FLOAT32, FORWARD).contenders:
        assert not contender.call()["h"].requires_grad, contender.label


def test_the_implementations_share_no_weights() -> None:
    weights = Weights.random(DIMS, torch.float32, torch.Generator().manual_seed(0))
    made = [layer(weights) for layer in (layers.fused, layers.library, layers.loop)]
    for name, expected in (("W", weights.W), ("R", weights.R), ("b", weights.b)):
        leaves = [layer.leaves[name] for layer in made]
        assert len({leaf.data_ptr() for leaf in leaves}) == 3
        for leaf in leaves:
            assert leaf.is_leaf and leaf.requires_grad
            assert torch.equal(leaf.detach().view_as(expected), expected)


def test_ours_is_held_to_the_library_s_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    distort(monkeypatch, "fused", lambda h: h * (1 + 1e-4))
    with pytest.raises(Disagreement, match=r"flashrnn is wrong in B=2 T=5 .* forward: h: error"):
        verify(case_of(DIMS, FLOAT32, FORWARD))


def test_a_peer_may_round_otherwise_but_not_compute_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distort(monkeypatch, "library", lambda h: h * (1 + 1e-4))
    assert 5e-5 < verify(case_of(DIMS, FLOAT32, FORWARD))["torch.nn.LSTM"].error < 2e-4
    distort(monkeypatch, "library", lambda h: h * 1.01)
    with pytest.raises(Disagreement, match=r"torch\.nn\.LSTM is wrong"):
        verify(case_of(DIMS, FLOAT32, FORWARD))


def test_a_wrong_gradient_is_found_where_h_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    distort(monkeypatch, "fused", lambda h: 2 * h - h.detach())
    verify(case_of(DIMS, FLOAT32, FORWARD))
    with pytest.raises(Disagreement, match="d_"):
        verify(case_of(DIMS, FLOAT32, FIRST_LAYER))


def test_a_missing_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = layers.loop

    def forgetful(weights: Weights) -> Layer:
        made = original(weights)
        del made.leaves["R"]
        return made

    case: Case = case_of(DIMS, FLOAT32, FIRST_LAYER)
    monkeypatch.setattr(layers, "loop", forgetful)
    lazy = case_of(DIMS, FLOAT32, FIRST_LAYER).eager
    with pytest.raises(Disagreement, match="not everyone computes d_R"):
        verify(replace(case, peers=(lazy,)))
