"""Other implementations of a layer: a file each, imported when it is used.

A peer's module has `contender(problem, kind, threads)`, which returns None where the peer does not
offer such a call: another cell, or gradients.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.errors import MissingPeer, UnknownChoice
from bench.layers.problem import Contender, Kind, Problem

Offer = Callable[[Problem, Kind, int], "Contender | None"]


@dataclass(frozen=True)
class Peer:
    """A peer in the table. needs: modules that may be missing. notes: for a report's readers."""

    label: str
    module: str
    needs: tuple[str, ...] = ()
    notes: str = ""


PEERS = {
    "nn": Peer("torch.nn", "bench.peers.torch_nn"),
    "loop": Peer("eager loop", "bench.peers.eager_loop"),
    "compile": Peer(
        "torch.compile",
        "bench.peers.torch_compile",
        notes="the eager loop compiled in pieces of 8 steps, for T ≤ 128 only",
    ),
    "onnxruntime": Peer(
        "onnxruntime",
        "bench.peers.onnx_runtime",
        ("onnx", "onnxruntime"),
        "forward only, weights packed beforehand",
    ),
    "openvino": Peer(
        "openvino",
        "bench.peers.open_vino",
        ("onnx", "openvino"),
        "forward only, weights packed beforehand",
    ),
    "jax": Peer("jax.lax.scan", "bench.peers.jax_scan", ("jax",), "compiled beforehand"),
}


@dataclass(frozen=True)
class Missing:
    """A peer that takes no part."""

    label: str
    why: str


def load(names: Iterable[str] | None) -> tuple[dict[str, Offer], list[Missing]]:
    """What to call for each peer; None for all that are installed, and those that are not.

    Raises UnknownChoice; MissingPeer where one that is named cannot be imported.
    """
    offers: dict[str, Offer] = {}
    missing = []
    for name in PEERS if names is None else names:
        if name not in PEERS:
            raise UnknownChoice("peer", name, PEERS)
        peer = PEERS[name]
        try:
            for module in peer.needs:
                importlib.import_module(module)
        except ImportError as error:
            if names is not None:
                raise MissingPeer(name, peer.needs, str(error)) from error
            missing.append(Missing(peer.label, str(error)))
            continue
        offers[name] = importlib.import_module(peer.module).contender
    return offers, missing
