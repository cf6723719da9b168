"""The command line: what it prints and how it exits."""

import json

import pytest

from constrint.cli import main

MODEL = """
model "halves";
var a: 1..8; var b: 1..8; var free: {0, 1};
"area": a*b == 12;
"order": a < b;
maximize a;
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "halves.constrint"
    path.write_text(MODEL)
    return str(path)


def run(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_solve(capsys, file):
    code, out, _ = run(capsys, "solve", file, "--prefer", "largest:free")
    assert code == 0
    assert out.splitlines() == [
        "a = 3",
        "b = 4",
        "free = 1",
        "  order: a < b (3 of 4 used)",
        "  area: a*b == 12 (both sides are 12)",
    ]
    code, out, _ = run(capsys, "solve", file, "--set", "a=2", "--json", "--engine", "cpsat")
    answer = json.loads(out)
    assert code == 0 and answer["solution"]["b"] == 6 and answer["optimal"]


def test_count_enumerate_sample(capsys, file):
    assert run(capsys, "count", file)[:2] == (0, "4\n")
    code, out, _ = run(capsys, "enumerate", file, "--json")
    listed = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(listed) == 4
    assert run(capsys, "enumerate", file, "--limit", "3")[1].count("\n") == 3
    _, out, _ = run(capsys, "sample", file, "-n", "2", "--seed", "1", "--json")
    drawn = [json.loads(line) for line in out.splitlines()]
    assert len(drawn) == 2 and all(at in listed for at in drawn)


def test_infeasible_models_exit_with_1_and_say_why(capsys, file):
    code, out, _ = run(capsys, "solve", file, "--set", "b=5")
    assert code == 1 and "area: a*b == 12" in out and "--set b=5: b == 5" in out
    code, out, _ = run(capsys, "explain", file, "--set", "b=5", "--json")
    assert code == 1 and len(json.loads(out)["conflict"]) == 2
    assert run(capsys, "explain", file)[:2] == (0, "there is a solution\n")
    assert run(capsys, "count", file, "--set", "b=5")[:2] == (1, "0\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["solve", "nowhere.constrint"], "nowhere.constrint"),
        (["solve", "FILE", "--set", "a=two"], "a=two"),
        (["solve", "FILE", "--set", "z=2"], "'z'"),
        (["solve", "FILE", "--prefer", "a"], "largest:NAME"),
        (["sample", "FILE", "-n", "9"], "a sample of 9 from a space of 4"),
        (["solve", "FILE", "--time-limit", "-1"], "-1"),
    ],
)
def test_bad_input_exits_with_2(capsys, file, arguments, told):
    code, _, err = run(capsys, *[file if a == "FILE" else a for a in arguments])
    assert code == 2 and told in err


def test_syntax_errors_exit_with_2_and_a_caret(capsys, tmp_path):
    path = tmp_path / "bad.constrint"
    path.write_text("var a: 1..8;\na + ;")
    code, _, err = run(capsys, "count", str(path))
    assert code == 2 and "line 2, column 5" in err and err.rstrip().endswith("^")


def test_graph(capsys, file, tmp_path):
    pytest.importorskip("networkx")
    code, out, _ = run(capsys, "graph", file)
    assert code == 0 and out.startswith("graph") and out.count(" -- ") == 4
    pytest.importorskip("matplotlib")
    target = tmp_path / "graph.png"
    assert run(capsys, "graph", file, "--picture", str(target))[0] == 0
    assert target.stat().st_size > 1000
