"""docs/writing-a-cell.md: its code runs and learns, and its errors are those that one gets."""

import math
import re
from pathlib import Path

import pytest
import torch

from flashrnn import cell, where
from flashrnn.errors import CellError

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-cell.md"
TEXT = PAGE.read_text(encoding="utf-8")
ERRORS = re.findall(
    r"^\| `([^`]+)` \| (.+) \|$", TEXT[TEXT.index("## What cannot be said") :], re.MULTILINE
)


def test_the_page_runs_and_the_cell_learns(capsys) -> None:
    scope: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), scope)
    losses = scope["losses"]
    assert losses[-1] < losses[0] / 10
    assert "at last" in capsys.readouterr().out


def test_the_page_tells_of_errors() -> None:
    assert len(ERRORS) > 8


@pytest.mark.parametrize(("equation", "words"), ERRORS)
def test_errors(equation: str, words: str) -> None:
    code = f"def told(g, s):\n    h = {equation}\n    return {{'h': h, 'c': s.c + g.a + g.b}}\n"
    scope = {"where": where, "math": math, "torch": torch}
    exec(compile(code, "told.py", "exec"), scope)
    with pytest.raises(CellError, match=re.escape(words)) as caught:
        cell(gates="a b", states="h c")(scope["told"])
    assert str(caught.value).startswith("told.py:2: ")
