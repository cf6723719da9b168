"""The command line: flashrnn show."""

import re
import subprocess
import sys

import networkx as nx
import pytest

from flashrnn.cells import gru
from flashrnn.cli import main
from flashrnn.emit import graph
from flashrnn.ir.cell import cell_names
from flashrnn.passes.lower import lower

USERS = """
from flashrnn import cell, tanh


@cell(gates="z", states="h")
def damped(g, s):
    return {"h": 0.5 * s.h + tanh(g.z)}
"""
BRANCHING = """
from flashrnn import cell


@cell(gates="z", states="h")
def branching(g, s):
    return {"h": g.z if g.z > 0 else s.h}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current directory and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def show(capsys, *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def complaint(capsys, *words: str) -> str:
    """What a wrong call prints on stderr."""
    try:
        status = main(["show", *words])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_the_source_and_its_tiling(capsys) -> None:
    text = show(capsys, "lstm", "--target", "cpp", "--head-dim", "48", "--threads", "1")
    first, second, third = text.splitlines()[:3]
    assert first.startswith("// For B=16 N=1 D=48, 1 thread, ")
    assert "b_per_register = " in first
    assert second == "// (chosen by the cost model)."
    assert third == "// lstm, forward, float32: generated from the cell's equations."
    assert "constexpr int d_per_register = " in text


def test_options(capsys) -> None:
    words = ("--batch", "1", "--heads", "3", "--dtype", "float64", "--threads", "2")
    text = show(capsys, "gru", *words, "--direction", "backward")
    assert "// For B=1 N=3 D=64, 2 threads" in text
    assert "using Real = double;" in text
    assert '#include "cpu/backward.hpp"' in text


def test_a_cell_of_the_users(capsys, module) -> None:
    name = module("users_cells", USERS)
    assert "// damped, forward, float32" in show(capsys, f"{name}:damped")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("lstn",),
            "flashrnn: no cell is called 'lstn'; known: KNOWN; "
            "a cell of your own is package.module:name\n",
        ),
        (
            ("nowhere_at_all:mine",),
            "flashrnn: cannot import 'nowhere_at_all' for 'nowhere_at_all:mine': "
            "ModuleNotFoundError: No module named 'nowhere_at_all'\n",
        ),
        (
            ("flashrnn.cells.gru:lstm",),
            "flashrnn: flashrnn.cells.gru has no cell 'lstm'; its cells: gru\n",
        ),
        (
            (":lstm",),
            "flashrnn: cannot import '' for ':lstm': ValueError: Empty module name\n",
        ),
        (
            ("lstm", "--graph", "lstm.jpg"),
            "flashrnn: --graph lstm.jpg: the name must end in one of .dot, .svg, .png, .pdf\n",
        ),
    ],
)
def test_errors_of_ours(capsys, words, message) -> None:
    known = ", ".join(cell_names())
    assert complaint(capsys, *words) == message.replace("KNOWN", known)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lstm", "--dtype", "float16"), r"--dtype float16: --target cpp has float32, float64"),
        (("lstm", "--target", "metal"), r"--target: invalid choice: 'metal' .*cpp"),
        (("lstm", "--direction", "up"), r"--direction: invalid choice: 'up' .*backward.*forward"),
        (("lstm", "--head-dim", "0"), r"--head-dim: 0 is not positive"),
        ((), r"the following arguments are required: CELL"),
    ],
)
def test_errors_of_the_parser(capsys, words, message) -> None:
    assert re.search(message, complaint(capsys, *words))


def test_an_error_in_the_users_cell_names_its_line(capsys, module, tmp_path) -> None:
    name = module("branching_cells", BRANCHING)
    message = complaint(capsys, f"{name}:branching")
    assert message.startswith(f"flashrnn: {tmp_path / name}.py:7: an expression has no truth value")


def test_a_picture_that_cannot_be_written(capsys, tmp_path) -> None:
    assert main(["show", "lstm", "--graph", str(tmp_path / "nowhere" / "x.dot")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_a_graph_in_the_terminal(capsys, golden_text) -> None:
    golden_text("graph/gru.txt", show(capsys, "gru", "--graph"))


@pytest.mark.parametrize("suffix", ["svg", "png", "dot"])
def test_a_graph_in_a_file(capsys, tmp_path, suffix) -> None:
    path = tmp_path / f"gru.{suffix}"
    assert show(capsys, "gru", "--graph", str(path)) == ""
    start = {"svg": b"<?xml", "png": b"\x89PNG", "dot": b"digraph cell {\n"}[suffix]
    assert path.read_bytes().startswith(start)


def test_without_matplotlib(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = complaint(capsys, "gru", "--graph", str(tmp_path / "gru.png"))
    assert "a .png needs matplotlib (pip install 'flashrnn-compiler[plot]'), a .dot does" in message


def test_the_network_of_a_graph() -> None:
    forward, backward = map(graph.network, graph.drawings(lower(gru)))
    for network in (forward, backward):
        assert nx.is_directed_acyclic_graph(network)
        depth = network.nodes(data="depth")
        assert all(depth[a] < depth[b] for a, b in network.edges)
    ends = [network.nodes[n]["label"] for n in network if not network.out_degree(n)]
    assert ends == ["d g.n_rec", "d g.r", "d g.z", "d g.n_in", "d s.h"]
    assert sum(label.startswith("sigmoid\nsaved") for _, label in forward.nodes(data="label")) == 2


def test_the_module_runs_as_a_program() -> None:
    words = [sys.executable, "-m", "flashrnn.cli", "show", "elman", "--graph"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("elman, forward\n  new.h\n  └─ tanh")
