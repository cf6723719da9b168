"""A cell's graphs as a picture, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import networkx as nx

from flashrnn.emit.graph import COLOURS, Drawing, network

# Inches per layer of the graph, per value in the fullest layer, and at the least.
PER_LAYER, PER_VALUE, LEAST = 1.3, 0.75, 3.0
SWEEPS = 4


def plot(both: Sequence[Drawing], path: Path) -> None:
    """Write the graphs one below the other; the format is that of the path's suffix."""
    from matplotlib.figure import Figure

    graphs = [network(d) for d in both]
    layers = [_layers(g) for g in graphs]
    heights = [max(LEAST, PER_VALUE * max(map(len, found))) for found in layers]
    width = PER_LAYER * max(map(len, layers))
    figure = Figure(figsize=(max(LEAST, width), sum(heights)), layout="constrained")
    rows = figure.subplots(len(graphs), squeeze=False, height_ratios=heights)[:, 0]
    for axes, drawing, graph, found in zip(rows, both, graphs, layers, strict=True):
        axes.set_title(drawing.title)
        axes.set_axis_off()
        nx.draw_networkx_edges(
            graph, _places(found), ax=axes, edge_color="#888888", node_size=900,
            connectionstyle="arc3,rad=0.08",  # straight ones would run through other nodes
        )  # fmt: skip
        for key, (x, y) in _places(found).items():
            node = graph.nodes[key]
            box = {"boxstyle": "round", "facecolor": COLOURS[node["kind"]], "edgecolor": "#666666"}
            axes.text(x, y, node["label"], ha="center", va="center", fontsize=8, bbox=box)
        axes.margins(0.08)
    figure.savefig(path, dpi=150)


def _layers(graph: nx.DiGraph) -> list[list[str]]:
    """Nodes by depth, each layer sorted by where its operands stand, which untangles edges."""
    layers: dict[int, list[str]] = {}
    for key, depth in graph.nodes(data="depth"):
        layers.setdefault(depth, []).append(key)
    found = [layers[depth] for depth in sorted(layers)]
    for sweep in range(SWEEPS):
        neighbours = graph.predecessors if sweep % 2 == 0 else graph.successors
        places = _places(found)
        for layer in found if sweep % 2 == 0 else reversed(found):

            def mean(key: str) -> float:
                heights = [places[n][1] for n in neighbours(key)]  # noqa: B023
                return -sum(heights) / len(heights) if heights else -places[key][1]  # noqa: B023

            layer.sort(key=mean)
            places = _places(found)
    return found


def _places(layers: list[list[str]]) -> dict[str, tuple[float, float]]:
    return {
        key: (float(x), len(layer) / 2 - y)
        for x, layer in enumerate(layers)
        for y, key in enumerate(layer)
    }
