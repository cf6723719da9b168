"""The digits example keeps its promises, and says so where it does not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_example_keeps_its_promises() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        name: float(percent)
        for name, percent in re.findall(r"^(\S+) +accuracy ([\d.]+) %", done.stdout, re.M)
    }
    assert found.keys() == {"flashrnn.layer", "torch.nn.LSTM"}
    assert found["flashrnn.layer"] >= 95
    apart = re.search(r"largest difference of the losses in 50 steps: (\S+)$", done.stdout, re.M)
    assert apart and 0 <= float(apart[1]) <= 1e-4


def test_a_training_is_the_same_each_time(digits: ModuleType) -> None:
    first, second = digits.load(), digits.load()
    assert first.train.equal(second.train) and first.test_labels.equal(second.test_labels)
    assert first.train.shape == (8, 1344, 8) and first.test.shape == (8, 453, 8)


@pytest.mark.parametrize(
    ("accuracy", "seconds", "shift", "words"),
    [
        (0.96, 1.0, 0.0, []),
        (0.94, 1.0, 0.0, ["accuracy 0.940 is below 0.95"]),
        (0.96, 61.0, 0.0, ["training took 61 s"]),
        (0.96, 1.0, 2e-4, ["the losses differ by 2.0e-04"]),
        (0.96, 1.0, float("nan"), ["the losses differ by nan"]),
        (0.10, 90.0, 1.0, ["accuracy", "training took", "the losses differ"]),
    ],
)
def test_a_broken_promise_is_told(
    digits: ModuleType, accuracy: float, seconds: float, shift: float, words: list[str]
) -> None:
    theirs = digits.Training([1.0] * 60, 0.5, 1.0)
    ours = digits.Training([1.0] * 49 + [1.0 + shift] + [9.0] * 10, accuracy, seconds)
    found = digits.broken_promises(ours, theirs)
    assert len(found) == len(words)
    assert all(sentence.startswith(word) for sentence, word in zip(found, words, strict=True))


def test_a_broken_promise_is_the_exit_status(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = digits.Training([1.0] * 60, 0.5, 1.0)
    monkeypatch.setattr(digits, "train", lambda *_: bad)
    monkeypatch.setattr(digits.torch, "set_num_threads", lambda _: None)
    assert digits.main() == 1
    assert "not as promised: accuracy 0.500" in capsys.readouterr().err
