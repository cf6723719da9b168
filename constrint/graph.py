"""The constraint graph: variables and constraints, joined where one speaks of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constrint.model import Model


def constraint_graph(model: Model) -> Any:
    """A bipartite networkx.Graph; node data has ``kind``, ``label`` and the stated object.

    Variables are nodes by their names, constraints by ("constraint", position). Connected
    components are the parts of the model that can be solved apart.
    """
    import networkx

    graph = networkx.Graph(name=model.name)
    for name, variable in model.variables.items():
        label = f"{name} in {variable.domain}"
        graph.add_node(name, kind="variable", label=label, stated=variable)
    for position, rule in enumerate(model.rules):
        node = ("constraint", position)
        graph.add_node(node, kind="constraint", label=str(rule), stated=rule)
        graph.add_edges_from((node, v.name) for v in rule.constraint.variables())
    return graph


def dot(model: Model) -> str:
    """The constraint graph in Graphviz' language: variables as ellipses, constraints as boxes."""
    graph = constraint_graph(model)
    place = {node: f"n{k}" for k, node in enumerate(graph.nodes)}
    lines = ["graph constraints {", "  node [fontname=monospace];"]
    for node, data in graph.nodes(data=True):
        shape = "ellipse" if data["kind"] == "variable" else "box"
        label = data["label"].replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  {place[node]} [shape={shape}, label="{label}"];')
    lines += [f"  {place[a]} -- {place[b]};" for a, b in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def picture(model: Model, path: str) -> None:
    """Draws the constraint graph into ``path`` (its suffix says how) with matplotlib."""
    import matplotlib
    import networkx

    matplotlib.use("Agg")
    from matplotlib import pyplot

    graph = constraint_graph(model)
    kinds = networkx.get_node_attributes(graph, "kind")
    figure, axes = pyplot.subplots(figsize=(12, 8))
    networkx.draw_networkx(
        graph,
        networkx.spring_layout(graph, seed=0),
        labels=networkx.get_node_attributes(graph, "label"),
        node_color=["#8ecae6" if kinds[n] == "variable" else "#ffb703" for n in graph],
        font_size=7,
        ax=axes,
    )
    axes.set_axis_off()
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
