"""NVIDIA machine code as nvdisasm prints it: instructions, their classes, and the loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# Class -> pattern of the base mnemonic (before the first dot), tried in this order. Names of all
# generations from Turing to Blackwell, from the instruction tables of the CUDA binary utilities.
CLASSES = {
    "tensor": r"[A-Z]?G?MMA|[A-Z]GMMA|UTC\w*MMA",
    "fma": r"FFMA2?|HFMA2|DFMA",
    "global load": r"LDG|LD|LDGSTS|UBLKCP|UTMALDG",
    "global store": r"STG|ST|RED|REDG|ATOM|ATOMG|UBLKRED|UTMASTG|UTMAREDG",
    "shared load": r"LDS|LDSM|ATOMS",
    "shared store": r"STS|STSM",
    "local load": r"LDL",
    "local store": r"STL",
    "special": r"MUFU",
    "barrier": r"BAR|SYNCS|UCGABAR_ARV|UCGABAR_WAIT",
    "shuffle": r"SHFL",
}
OTHER = "other"

_PATTERNS = [(name, re.compile(pattern)) for name, pattern in CLASSES.items()]
_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P[0-9T]+)\s+)?"
    r"(?P<name>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*);"
)
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_ALWAYS = {None, "PT", "UPT"}
_LEAVES = {"EXIT", "RET", "KILL", "BRX", "BRXU"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: "LDG.E.128" has the base "LDG". `target` is a branch's label, else ""."""

    address: int
    name: str
    operands: str
    guarded: bool
    target: str

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def kind(self) -> str:
        """Its class of `CLASSES`, or OTHER."""
        return next((name for name, p in _PATTERNS if p.fullmatch(self.base)), OTHER)

    @property
    def bytes(self) -> int:
        """What one thread of a load or store moves."""
        widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
        return next((widths[part] for part in self.name.split(".") if part in widths), 4)


@dataclass(frozen=True)
class Code:
    """A sequence of instructions, counted."""

    instructions: tuple[Instruction, ...]

    def __len__(self) -> int:
        return len(self.instructions)

    @cached_property
    def classes(self) -> Mapping[str, int]:
        """Instructions per class; classes that do not occur are 0."""
        found = Counter(instruction.kind for instruction in self.instructions)
        return {name: found[name] for name in (*CLASSES, OTHER)}

    @cached_property
    def mnemonics(self) -> Mapping[str, int]:
        """Instructions per base mnemonic: "LDSM" -> 8."""
        return Counter(instruction.base for instruction in self.instructions)

    def bytes(self, kind: str) -> int:
        """What one thread moves with the instructions of a class, each executed once."""
        return sum(i.bytes for i in self.instructions if i.kind == kind)


@dataclass(frozen=True)
class Loop:
    """A natural loop. `depth` is 1 for an outermost one; `code` is what the loop consists of,
    inner loops included, so it is one iteration as far as these are passed once."""

    depth: int
    code: Code


@dataclass(frozen=True)
class Function:
    """The code of one function and its loops, in the order of their first instructions."""

    name: str
    code: Code
    loops: tuple[Loop, ...]

    @property
    def main_loop(self) -> Loop | None:
        """The longest outermost loop: a kernel's loop over time, where it has one."""
        outermost = [loop for loop in self.loops if loop.depth == 1]
        return max(outermost, key=lambda loop: len(loop.code), default=None)


def parse(text: str) -> list[Function]:
    """The functions in the output of `nvdisasm -c`."""
    functions: list[Function] = []
    name, labels, instructions = "", dict[str, int](), list[Instruction]()

    def finish() -> None:
        if instructions:
            code = Code(tuple(instructions))
            functions.append(Function(name, code, _loops(instructions, labels)))

    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            finish()
            name, labels, instructions = found[1], {}, []
        elif found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(_instruction(found))
    finish()
    return functions


def _instruction(found: re.Match[str]) -> Instruction:
    target = _TARGET.search(found["operands"])
    return Instruction(
        address=int(found["address"], 16),
        name=found["name"].rstrip("."),
        operands=found["operands"].strip(),
        guarded=found["guard"] not in _ALWAYS,
        target=target[1] if target else "",
    )


def _successors(
    at: int, instructions: Sequence[Instruction], labels: Mapping[str, int]
) -> list[int]:
    """Where execution can go on after instruction `at`.

    A call returns behind itself; a warp that waits for its other lanes (BSSY, BSYNC) goes on as
    they do.
    """
    here, after = instructions[at], [at + 1] if at + 1 < len(instructions) else []
    if here.base in _LEAVES:
        return after if here.guarded else []
    if here.base != "BRA" or not here.target:
        return after
    target = labels.get(here.target, len(instructions))
    jumps = [target] if target < len(instructions) else []
    # besides the guard, newer branches have a predicate among their operands
    conditional = here.guarded or "," in here.operands.split("`")[0]
    return jumps + after if conditional else jumps


def _loops(instructions: Sequence[Instruction], labels: Mapping[str, int]) -> tuple[Loop, ...]:
    """The natural loops: what lies between a branch and its target that dominates it.

    Being further up in the text is not enough: compilers move rare paths behind the end.
    """
    import networkx as nx

    after = [_successors(at, instructions, labels) for at in range(len(instructions))]
    heads = {0} | {to for at, going in enumerate(after) for to in going if going != [at + 1]}
    heads |= {at + 1 for at, going in enumerate(after) if going != [at + 1]} | set(labels.values())
    starts = sorted(head for head in heads if head < len(instructions))
    blocks = dict(zip(starts, [*starts[1:], len(instructions)], strict=True))

    graph = nx.DiGraph()
    graph.add_node(0)
    graph.add_edges_from((start, to) for start, end in blocks.items() for to in after[end - 1])
    reached = graph.subgraph(nx.descendants(graph, 0) | {0})
    dominator = nx.immediate_dominators(reached, 0)
    bodies: dict[int, set[int]] = {}
    for source, head in reached.edges:
        if _dominates(head, source, dominator):
            bodies.setdefault(head, {head}).update(_body(reached, source, head))
    found = []
    for head in sorted(bodies):
        inside = [at for start in sorted(bodies[head]) for at in range(start, blocks[start])]
        depth = sum(head in other for other in bodies.values())
        found.append(Loop(depth, Code(tuple(instructions[at] for at in inside))))
    return tuple(found)


def _dominates(head: int, node: int, dominator: Mapping[int, int | None]) -> bool:
    """Whether every way to `node` leads through `head`."""
    at: int | None = node
    while at is not None and at != head:
        above = dominator.get(at)
        at = None if above == at else above
    return at == head


def _body(graph: object, source: int, head: int) -> set[int]:
    """What reaches `source` without passing `head`."""
    body, open_ends = {head}, [source]
    while open_ends:
        node = open_ends.pop()
        if node not in body:
            body.add(node)
            open_ends.extend(graph.predecessors(node))  # type: ignore[attr-defined]
    return body
