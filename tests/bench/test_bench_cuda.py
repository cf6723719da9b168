"""The suite `compile-cuda`: its figures and page on made-up rows, and a run of one kernel."""

import json
from dataclasses import replace

import pytest

from bench import cli, cuda_suite
from bench.cuda_suite import Row, Try

FIRST = Try(predicted=240, registers=250, spilled=0, cap=255, in_fewer=True)
ROW = Row(
    "lstm", "backward", "bfloat16", "h100-sxm", 90, 256, False, schedule="cluster",
    tiling={"units": 16}, step_microseconds=2.5, shared_bytes=12_345, tries=(FIRST,),
)  # fmt: skip
SPILLED = replace(FIRST, registers=255, spilled=24, in_fewer=False)
AGAIN = replace(FIRST, predicted=200, registers=204)
STILL = replace(SPILLED, predicted=230, spilled=8)
ROWS = [
    ROW,
    replace(ROW, head_dim=512, tries=(SPILLED, AGAIN)),
    replace(ROW, head_dim=1024, tries=(SPILLED, STILL), spilled_in_loop=4),
    replace(ROW, head_dim=2112, largest=True, schedule="grid", tries=(replace(STILL, spilled=4),)),
]


def test_the_figures() -> None:
    told = dict(cuda_suite.figures(ROWS))
    assert told["kernels"] == "3"
    assert told["no spill at first choice"] == "33.3 %"
    assert told["no spill after one more choice"] == "66.7 %"
    assert told["local memory in the time loop"] == "1 kernels"
    assert told["tensor-core instructions as tiled"] == "in all"
    assert told["registers, of 4 tilings within 10 % of the cap"] == "8.0 % median, 10.5 % worst"


def test_what_comes_near_the_cap() -> None:
    assert FIRST.near and FIRST.needed == 250
    assert SPILLED.near and SPILLED.needed == 261
    assert SPILLED.error == pytest.approx(240 / 261 - 1)
    few = replace(FIRST, predicted=180)
    assert not few.near, "it took what was free"
    assert replace(few, in_fewer=False).near, "it needs what it took"
    assert replace(FIRST, registers=150).near, "predicted to be"
    assert not replace(FIRST, predicted=100, registers=110).near
    assert replace(FIRST, predicted=100, registers=110, cap=104).near


def test_the_page() -> None:
    text = cuda_suite.page({"date": "2026-11-26", "nvrtc": "13.5"}, ROWS)
    assert "2026-11-26, NVRTC 13.5, without a GPU;" in text
    assert "microseconds are the latency model's" in text
    assert "| lstm | backward | 2112, grid (4) |" in text
    told = "| lstm | backward | h100-sxm | 512 | cluster | 2.5 | "
    told += "240, 255; 200, 204 | 12,345 | 24, 0 |"
    assert told in text
    assert "| 2112 | grid" not in text, "the largest heads have a table of their own"


@pytest.mark.slow
def test_a_run_of_one_cell(tmp_path, capsys) -> None:
    pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")
    pytest.importorskip("triton", reason="the disassembler comes with Triton")
    output, page = tmp_path / "found.json", tmp_path / "page.md"
    words = ["run", "--suite", "compile-cuda", "--cells", "elman", "--head-dims", "64"]
    words += ["--devices", "a100-80-sxm", "--jobs", "1", "--page", str(page)]
    assert cli.main([*words, "--output", str(output)]) == 0
    assert "no spill at first choice: 100.0 %" in capsys.readouterr().out
    rows = json.loads(output.read_text())["rows"]
    assert [(r["direction"], r["largest"]) for r in rows] == [
        ("training", False), ("training", True), ("backward", False), ("backward", True),
    ]  # fmt: skip
    assert rows[1]["head_dim"] > 2000
    assert rows[1]["schedule"] == "grid"
    assert page.read_text().startswith("# CUDA kernels")
    assert cli.main(["show", str(output)]) == 0
