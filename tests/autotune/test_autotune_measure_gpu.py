"""Timing on a GPU, on a stream that is not there: the order of things, and what is refused.

Nothing here has run on a GPU; `CudaStream` is what these tests replace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune import cache, cli, measure_gpu, tuner
from autotune.device import Device
from autotune.errors import CaptureInProgress, NotDeterministic
from autotune.measure_gpu import capturing, interleave, verify
from autotune.registry import Origin
from autotune.space import Check, Rivals, called

H100 = Device.named("h100-sxm")


@dataclass
class FakeStream:
    """A GPU whose clock advances by what is enqueued, with a log of it."""

    recording: bool = False
    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def capturing(self) -> bool:
        return self.recording

    def flush(self) -> None:
        self.log.append("flush")
        self.now += 100.0

    def mark(self) -> float:
        self.log.append("mark")
        return self.now

    def seconds(self, start: float, end: float) -> float:
        self.log.append("wait")
        return end - start

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += seconds

        return run


def test_each_sample_is_one_call_on_a_cold_cache_by_the_clock_of_the_gpu() -> None:
    stream = FakeStream()
    functions = {"a": stream.work("a", 2.0), "b": stream.work("b", 3.0)}
    timings = interleave(functions, stream, seconds=0.0, min_rounds=3, warmup=1)
    assert {name: timing.samples for name, timing in timings.items()} == {
        "a": (2.0,) * 3,
        "b": (3.0,) * 3,
    }
    a, b = ["flush", "mark", "a", "mark", "wait"], ["flush", "mark", "b", "mark", "wait"]
    assert stream.log == ["a", "b", *a, *b, *b, *a, *a, *b]


def test_rounds_go_on_until_the_time_is_used() -> None:
    stream = FakeStream()
    ticks = iter(range(100))
    timings = interleave(
        {"a": stream.work("a", 1.0)}, stream, seconds=7.5, min_rounds=2, clock=lambda: next(ticks)
    )
    assert len(timings["a"].samples) == 2 + 7, "two at least, then one per tick until 7.5"
    with pytest.raises(ValueError, match="min_rounds is 0"):
        interleave({}, stream, seconds=1.0, min_rounds=0)


@dataclass
class FakeRunner:
    error: float = 0.0
    bits: tuple[bytes, ...] = (b"same", b"same")
    runs: int = 0

    def check(self) -> Check:
        return Check(self.error, 1e-3, "error")

    def run(self) -> None:
        raise AssertionError

    def results(self) -> bytes:
        self.runs += 1
        return self.bits[self.runs - 1]


def test_what_differs_from_run_to_run_is_refused() -> None:
    assert verify(FakeRunner(), FakeStream()).ok
    with pytest.raises(NotDeterministic):
        verify(FakeRunner(bits=(b"one", b"two")), FakeStream())


def test_what_is_wrong_need_not_repeat_itself() -> None:
    runner = FakeRunner(error=1.0)
    assert not verify(runner, FakeStream()).ok
    assert runner.runs == 0


def test_nothing_is_timed_inside_of_a_capture() -> None:
    stream = FakeStream(recording=True)
    with pytest.raises(CaptureInProgress):
        interleave({"a": stream.work("a", 1.0)}, stream, seconds=1.0)
    with pytest.raises(CaptureInProgress):
        verify(FakeRunner(), stream)
    assert stream.log == []


@pytest.mark.parametrize(
    ("available", "recording", "answer"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_torch_is_asked_whether_it_captures(
    monkeypatch: pytest.MonkeyPatch, available: bool, recording: bool, answer: bool
) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: available, is_current_stream_capturing=lambda: recording
    )
    monkeypatch.setitem(measure_gpu.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert capturing() is answer


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))


def origin(bad: str) -> Origin:
    options = {"head_dim": 32, "bad": bad, "children": "", "device": "h100-sxm", "fake": True}
    return Origin("autotune_toy_gpu:family", options)


@pytest.mark.usefixtures("here")
def test_the_search_compiles_reranks_checks_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole search of a GPU's kernel, with the host's clock for a stream."""
    toy = origin("4=random,2=wrong")
    monkeypatch.setattr(tuner, "FINALISTS", 5)
    monkeypatch.setattr(tuner, "ENOUGH_SECONDS", 0.1)
    result = tuner.tune(toy.rivals()[0], toy, H100, budget_seconds=100.0, top_k=6)
    fates = {(t.config["warps"], t.config["registers"]): t.status for t in result.trials}
    assert fates[4, 32] == fates[4, 128] == "failed"
    assert fates[2, 128] == "wrong"
    assert fates[1, 32] == "skipped", "it spills most, so five are better"
    assert fates[1, 128] == "timed"
    assert result.device == H100.fingerprint
    reasons = {t.reason for t in result.trials if t.config["warps"] == 4}
    assert reasons == {
        "NotDeterministic: two runs on the same inputs differ; kernels must repeat their bits"
    }


@pytest.mark.usefixtures("here")
def test_rivals_race_and_only_the_faster_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Origin("autotune_toy_gpu:family", {**origin("2=raise").options, "rivals": True})
    monkeypatch.setattr(tuner, "FINALISTS", 2)
    monkeypatch.setattr(tuner, "ENOUGH_SECONDS", 0.1)
    stages: list[str] = []

    def watch(name: str, stage: str, done: int, total: int) -> None:
        assert name == "toy recurrence, fused or alternating"
        stages.append(stage)

    (result,) = tuner.tune_family(toy, H100, budget_seconds=100.0, top_k=4, watch=watch)
    fates = [(t.description, t.status) for t in result.trials]
    assert fates == [
        ("1 warps, at most 128 registers", "timed"),
        ("4 warps, at most 32 registers", "timed"),
        (
            "4 warps, at most 32 registers, step by step",
            "timed",
        ),  # though its estimate is the worst
        ("4 warps, at most 128 registers", "timed"),
        ("2 warps, at most 32 registers", "not built"),
        ("2 warps, at most 128 registers", "not built"),
    ]
    assert set(stages) == {"solve", "compile", "check", "time"}
    assert result.name == "toy recurrence, alternating"
    (entry,) = cache.entries()
    assert (entry.name, entry.config) == (result.name, result.config)
    for tunable in toy.gpu_tunables():
        assert cache.lookup(tunable.problem(), H100) == {"warps": 4, "registers": 32, "steps": 1}


@pytest.mark.usefixtures("here")
def test_a_schedule_that_does_not_fit_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Origin("autotune_toy_gpu:family", {**origin("").options, "head_dim": 512})
    tuned: list[str] = []

    def tune(rivals: Rivals, *rest: object, **more: object) -> SimpleNamespace:
        tuned.append(called(rivals))
        return SimpleNamespace(interrupted=False)

    monkeypatch.setattr(tuner, "tune", tune)
    told: list[tuple[str, str]] = []

    def watch(name: str, stage: str, done: int, total: int) -> None:
        told.append((name, stage))

    list(tuner.tune_family(toy, H100, budget_seconds=1.0, top_k=1, watch=watch))
    assert told == [("toy recurrence, fused", "no configuration fits")]
    assert tuned == ["toy recurrence, alternating"]


@pytest.mark.usefixtures("here")
def test_the_search_refuses_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_gpu, "capturing", lambda: True)
    toy = origin("")
    with pytest.raises(CaptureInProgress, match="tune before the capture"):
        tuner.tune(toy.rivals()[0], toy, H100, budget_seconds=1.0, top_k=1)


@pytest.mark.usefixtures("here")
def test_the_command_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = SimpleNamespace(__version__="9.9", version=SimpleNamespace(cuda=None))
    monkeypatch.setitem(measure_gpu.sys.modules, "torch", torch)
    assert cli.main(["run", "autotune_toy_gpu:family", "--device", "cuda", "--head-dim", "32"]) == 1
    assert "there is no GPU to use: torch 9.9 was built without CUDA" in capsys.readouterr().err
