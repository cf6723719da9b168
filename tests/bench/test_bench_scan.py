"""The scan suite on tiny sizes: every contender computes the same, every figure is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from autotune.show import console
from bench import scan_suite
from bench.scan_streams import mover
from flashrnn.attention.family import eager_composite
from flashrnn.scan_reference import attention_reference as reference


def test_peers_compute_the_same() -> None:
    s, v = torch.randn(1, 40, 2).double(), torch.randn(1, 40, 2, 5).double()
    exact = reference(s, v)[0]
    for peer in (eager_composite, scan_suite.expanded_query):
        torch.testing.assert_close(peer(s, v), exact)


@pytest.mark.parametrize("past_caches", [False, True])
@pytest.mark.parametrize("streams", [1, 3])
def test_a_bare_loop_moves_everything(streams: int, past_caches: bool) -> None:
    sources = tuple(torch.randn(16, 2, 16) for _ in range(streams))
    to = torch.full((16, 2, 16), torch.nan)
    mover(sources, to, past_caches=past_caches)()
    assert torch.equal(to, sum(sources[1:], sources[0]))


def test_a_bare_loop_has_the_streams_of_a_scan() -> None:
    x = torch.zeros(8)
    with pytest.raises(ValueError, match="not 2"):
        mover((x, x), x, past_caches=False)


def test_the_suite_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan_suite, "HEADS", ((2, 16),))
    monkeypatch.setattr(scan_suite, "POSITIONS", (10, 20))
    monkeypatch.setattr(scan_suite, "CACHES", (10,))
    monkeypatch.setattr(scan_suite, "SAMPLE_SECONDS", 1e-4)
    options = argparse.Namespace(threads=1, seconds=0.01, lengths=[64])
    file = tmp_path / "results" / "scan.json"
    scan_suite.run(options, console(), file)
    told = capsys.readouterr().out
    scan_suite.show(console(), file)
    assert capsys.readouterr().out == told
    data = json.loads(file.read_text())
    width, alike, stream = data["rows"]
    moved = 64 * 2 * (2 * 16 + 1) * 4
    assert scan_suite.Problem(64, 2, 16).bytes["forward"] == moved
    assert width["shares"].keys() >= {
        "forward of copy_", "forward+backward of non-temporal copy",
        "forward+backward of bare forward+backward", "bare forward of copy_",
    }  # fmt: skip
    assert max(alike["errors"].values()) < 1e-5
    assert "eager composite" in alike["times_ours"]
    assert stream["bytes"]["step at 10"] == stream["bytes"]["step at 20"]
