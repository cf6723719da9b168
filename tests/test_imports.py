"""The import direction: constrint ← autotune ← flashrnn ← bench, and the layers of flashrnn."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["constrint", "autotune", "flashrnn", "bench"]
# Later layers may import earlier ones; a list is one layer.
FLASHRNN = [
    ["errors", "dims", "dtypes", "tolerance", "options"],
    ["ir"],
    ["cells"],
    ["reference", "scan_reference"],
    ["passes"],
    ["emit"],
    ["tiling"],
    ["packs"],
    ["runtime"],
    ["autocast", "checks", "repeated"],
    ["scan"],
    ["attention"],
    ["gpu_tunable"],
    ["tunable", "triton_tunable", "cuda_tunable", "api"],
    ["nn", "families", "onnx", "onnx_scan"],
    ["pack_check"],
    ["pack_command", "show_cuda"],
    ["cli"],
]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_before_them(package: str) -> None:
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = [n for n in imported(path) if n.split(".")[0] in later]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_layers_of_flashrnn() -> None:
    rank = {name: i for i, layer in enumerate(FLASHRNN) for name in layer}
    for path in (ROOT / "flashrnn").rglob("*.py"):
        own = path.relative_to(ROOT / "flashrnn").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in rank, f"{path} belongs to no layer: add {own!r} to the list"
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "flashrnn" and len(parts) > 1 and parts[1] in rank:
                assert rank[parts[1]] <= rank[own], f"{path.relative_to(ROOT)} imports {name}"


def test_importing_flashrnn_compiles_and_loads_nothing_heavy() -> None:
    program = (
        "import subprocess, sys\n"
        "import torch\n"  # which starts a process of its own where cuda-bindings are installed
        "subprocess.Popen = None\n"
        "import flashrnn\n"
        "print([m for m in ('triton', 'ortools', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
