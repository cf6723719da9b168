"""A cell's forward and backward graph, as text for a terminal and in the DOT language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, leaf, walk
from flashrnn.passes.lower import Program
from flashrnn.passes.save import recomputed

SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "neg": "−", "less": "<",
         "less_equal": "≤", "equal": "="}  # fmt: skip
# Fill colours of the drawings.
COLOURS = {"input": "#d9e8f6", "operation": "#ffffff", "marked": "#fdebc8", "result": "#d5efd5"}


@dataclass(frozen=True)
class Drawing:
    """One direction. results: each with its name; marks: what is said of some expressions."""

    title: str
    results: tuple[tuple[str, Expression], ...]
    marks: Mapping[Expression, str]

    @property
    def roots(self) -> tuple[Expression, ...]:
        return tuple(root for _, root in self.results)


def drawings(program: Program) -> tuple[Drawing, Drawing]:
    """The forward pass with what it saves, and the backward pass with what it recomputes."""
    cell = program.cell
    forward = [(f"new.{s}", e) for s, e in zip(cell.states, program.new_states, strict=True)]
    saved = {e: f"saved.{k}" for k, e in enumerate(program.saved)}
    extra = [e for e in program.saved if e not in set(walk(program.new_states))]
    inputs = [leaf("gate", g) for g in cell.gates] + [leaf("state", s) for s in cell.states]
    inputs += [leaf(kind, name) for kind, name in program.weights]
    names = [f"d {x!r}" for x in inputs]
    marks = dict.fromkeys(recomputed(program.backward), "recomputed")
    return (
        Drawing(f"{cell.name}, forward", (*forward, *((saved[e], e) for e in extra)), saved),
        Drawing(f"{cell.name}, backward", tuple(zip(names, program.backward, strict=True)), marks),
    )


def network(drawing: Drawing) -> nx.DiGraph:
    """Edges from operands to operations, and on to the names of results.

    Nodes carry `label`, `kind` (a key of COLOURS) and `depth`: operations on the longest way from
    an input; an input stands just before its first use, a constant before each.
    """
    graph: nx.DiGraph = nx.DiGraph()
    number = {node: f"n{k}" for k, node in enumerate(walk(drawing.roots))}
    depth: dict[Expression, int] = {}

    def connect(operands: Sequence[Expression], key: str) -> None:
        for k, operand in enumerate(operands):
            origin = number[operand]
            if operand.op == CONSTANT:
                origin = f"{key}c{k}"
                graph.add_node(origin, label=_label(operand), kind="input")
            graph.add_edge(origin, key)

    for node, key in number.items():
        depth[node] = 1 + max((depth[a] for a in node.arguments), default=-1)
        mark = drawing.marks.get(node, "")
        kind = "input" if not node.arguments else "marked" if mark else "operation"
        label = f"{_label(node)}\n{mark}" if mark else _label(node)
        if node.op != CONSTANT:
            graph.add_node(key, label=label, kind=kind, depth=depth[node])
        connect(node.arguments, key)
    last = 1 + max(depth.values())
    for k, (name, root) in enumerate(drawing.results):
        graph.add_node(f"r{k}", label=name, kind="result", depth=last)
        connect([root], f"r{k}")
    for key, data in graph.nodes(data=True):
        if data["kind"] == "input":
            uses = (graph.nodes[user]["depth"] for user in graph.successors(key))
            data["depth"] = min(uses, default=last) - 1
    return graph


def text(both: Iterable[Drawing]) -> str:
    """Trees, one per result; a value that is used again has a number, and is drawn once."""
    return "\n\n".join("\n".join([d.title, *_trees(d)]) for d in both)


def dot(both: Iterable[Drawing]) -> str:
    """The graphs side by side in the DOT language (graphviz.org)."""
    lines = ["digraph cell {", "  rankdir=LR;", "  node [shape=box, style=filled];"]
    for k, drawing in enumerate(both):
        lines += [f"  subgraph cluster_{k} {{", f"    label={_quoted(drawing.title)};"]
        graph = network(drawing)
        for key, node in graph.nodes(data=True):
            colour = COLOURS[node["kind"]]
            label = _quoted(node["label"])
            lines.append(f"    g{k}{key} [label={label}, fillcolor={_quoted(colour)}];")
        lines += [f"    g{k}{a} -> g{k}{b};" for a, b in graph.edges]
        lines.append("  }")
    return "\n".join([*lines, "}\n"])


def _quoted(words: str) -> str:
    return '"' + words.replace('"', '\\"').replace("\n", "\\n") + '"'


def _label(node: Expression) -> str:
    return repr(node) if node.op in (CONSTANT, INPUT) else SIGNS.get(node.op, node.op)


def _trees(drawing: Drawing) -> Iterator[str]:
    numbers = _shared(drawing.roots)
    drawn: set[Expression] = set()
    for name, root in drawing.results:
        yield f"  {name}"
        # what is left to draw: a value, what stands left of its branch, and whether it is the last
        stack = [(root, "  ", True)]
        while stack:
            node, before, last = stack.pop()
            again = node in drawn
            drawn.add(node)
            number = f" [{numbers[node]}]" if node in numbers else ""
            mark = f"  {drawing.marks[node]}" if node in drawing.marks and not again else ""
            above = "  above" if again and node in numbers else ""
            yield f"{before}{'└─' if last else '├─'} {_label(node)}{number}{above}{mark}"
            if not again:
                below = before + ("   " if last else "│  ")
                ends = [k == len(node.arguments) - 1 for k in range(len(node.arguments))]
                branches = list(zip(node.arguments, [below] * len(ends), ends, strict=True))
                stack += reversed(branches)


def _shared(roots: Sequence[Expression]) -> dict[Expression, int]:
    """Operations that are used more than once, numbered."""
    uses: dict[Expression, int] = {}
    for operand in (*roots, *(a for node in walk(roots) for a in node.arguments)):
        uses[operand] = uses.get(operand, 0) + 1
    shared = [node for node in walk(roots) if node.arguments and uses[node] > 1]
    return {node: k + 1 for k, node in enumerate(shared)}
