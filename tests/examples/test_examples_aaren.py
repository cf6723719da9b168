"""The series example in short form: streaming is the parallel pass, and the state stays small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "aaren_series.py"


@pytest.mark.slow
def test_the_example_in_short_form() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE), "--short"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(\S+) +(\d+) parameters +test loss ([\d.]+)", done.stdout, re.M)
    sizes = {kind: int(count) for kind, count, _ in found}
    assert sizes.keys() == {"Aaren", "Transformer"}
    assert abs(sizes["Aaren"] / sizes["Transformer"] - 1) < 0.01, "the same size"
    assert all(0 < float(loss) < 2 for _, _, loss in found)
    assert re.search(r"state: (\d+) to \1 bytes", done.stdout)
