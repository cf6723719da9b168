"""The other examples, each in a short form: they run, and keep what they promise."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_parity_tells_a_broken_promise(capsys: pytest.CaptureFixture[str]) -> None:
    parity = load("parity")
    assert parity.main(["--tasks", "modular", "--models", "lstm", "--steps", "1"]) == 1
    assert "not as promised: modular: the lstm is right in 0." in capsys.readouterr().err


def test_models_of_parity_are_of_one_size() -> None:
    parity = load("parity")
    for K in parity.TASKS.values():
        models = [parity.Recurrent("lstm", K), parity.Recurrent("slstm", K), parity.Transformer(K)]
        counts = [sum(p.numel() for p in m.parameters()) for m in models]
        assert max(counts) < 1.1 * min(counts)


@pytest.mark.slow
def test_parity(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("parity").main([]) == 0
    found = re.findall(r"^(\w+) +(\w+) .*at 256 ([\d.]+) %$", capsys.readouterr().out, re.M)
    assert [model for _, model, _ in found] == 2 * ["lstm", "slstm", "transformer"]
    assert all(float(percent) >= 95 for _, model, percent in found if model != "transformer")


@pytest.mark.slow
def test_licences(capsys: pytest.CaptureFixture[str]) -> None:
    licences = load("licences")
    assert licences.main(["--steps", "150"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"characters ([\d.]+), pairs ([\d.]+), LSTM ([\d.]+)", said)
    assert found
    one, two, ours = map(float, found.groups())
    assert 1 < ours < two < one
    assert "Permission is " in said


def test_licences_does_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    licences = load("licences")
    monkeypatch.setattr(licences, "licence_texts", list)
    assert len(licences.corpus()) > licences.LEAST_CHARACTERS


def test_streaming(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = load("streaming")
    monkeypatch.setattr(streaming, "MOST_LATE", 1.0)  # a busy machine is no defect
    assert streaming.main(["--seconds", "1", "--paced"]) == 0
    said = capsys.readouterr().out
    assert sum(int(n) for n in re.findall(r"us +(\d+) #", said)) == 100
    assert "100 frames of 10 ms: median" in said


def test_streaming_tells_late_frames(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = load("streaming")
    monkeypatch.setattr(streaming, "stream", lambda model, frames, _: (model(frames), [1.0] * 5))
    assert streaming.main(["--seconds", "0.05"]) == 1
    assert "100.0 % of the frames are late" in capsys.readouterr().err


def test_convert(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("convert").main(["--steps", "20"]) == 0
    said = capsys.readouterr().out
    assert "replaced read: LSTM(8, 64" in said and "replaced mark: GRU(128, 64" in said
    assert len(re.findall(r"torch\.nn [\d.]+ ms, flashrnn\.nn [\d.]+ ms", said)) == 2
