"""The built wheel works outside the checkout: it carries csrc, packs and the device table."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import flashrnn, torch
print(flashrnn.__file__)
states, last = flashrnn.flashrnn(torch.ones(2, 3, 4, 1, 5), torch.ones(4, 1, 5, 5))
assert states.isfinite().all()
"""


@pytest.mark.slow
def test_wheel(tmp_path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "site")
    for needed in (
        "flashrnn/csrc/cpu/forward.hpp",
        "flashrnn/csrc/cuda/block_forward.hpp",
        "autotune/devices.toml",
        *(f"flashrnn/packs/{name}.json" for name in ("a100-40-sxm", "h100-sxm", "l4", "rtx-4090")),
        "flashrnn/py.typed",
        "constrint/__init__.py",
        "bench/cli.py",
    ):
        assert needed in names
    assert not any(n.startswith(("tests/", "csrc/")) for n in names)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),
        "FLASHRNN_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
