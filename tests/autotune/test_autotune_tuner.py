"""Searches over toy kernels, some of which crash, hang, lie or cannot be built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.cache import lookup
from autotune.device import Device
from autotune.errors import CacheWarning, FamilyUnavailable, NothingWorks, WorkerFailed
from autotune.measure import Timing
from autotune.registry import Origin
from autotune.result import Result
from autotune.tuner import Watch, leads, tune, tune_family
from autotune.worker import Worker


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))
    # a race ends by its samples, so that budgets can be larger than any machine needs
    monkeypatch.setattr("autotune.tuner.ENOUGH_SECONDS", 0.05)
    return tmp_path / "cache"


def origin(**options: int | str) -> Origin:
    toy = {"best": 4, "default": 1, "limit": 12, "bad": "", "built": "", "threads": 1}
    return Origin("autotune_toy:family", {**toy, **options})


def ignore(name: str, stage: str, done: int, total: int) -> None:
    pass


def search(
    toy: Origin, budget: float = 120.0, top: int = 8, patience: float = 30.0, watch: Watch = ignore
) -> Result:
    return tune(
        toy.rivals()[0],
        toy,
        Device.current(),
        budget_seconds=budget,
        top_k=top,
        patience=patience,
        watch=watch,
    )


def fates(result: Result) -> dict[int, str]:
    return {trial.config["size"]: trial.status for trial in result.trials}


def test_the_fastest_wins_and_is_remembered() -> None:
    toy = origin(threads=2)
    result = search(toy)
    assert result.config == {"size": 4}
    assert set(fates(result).values()) == {"timed"} and len(result.trials) == 6
    assert result.feasible == 6
    assert not result.is_default and not result.interrupted
    assert result.seconds is not None and result.default_seconds is not None
    assert 2 < result.default_seconds / result.seconds < 5
    assert result.check.what == "error of the toy on 2 threads"
    assert lookup(toy.tunables()[0].problem(), Device.current()) == {"size": 4}


def test_the_binding_constraint_is_told_with_its_values() -> None:
    assert search(origin(best=6)).binding == ("space: size*2 <= 12 (12 of 12 used)",)
    assert search(origin(best=5), top=5).binding == ("space: size*2 <= 12 (10 of 12 used)",)


def test_a_default_outside_the_model_may_win_and_says_what_it_violates() -> None:
    result = search(origin(default=8, best=8, limit=4))
    assert result.is_default and result.feasible == 2
    [text] = result.binding
    assert "off by 12" in text


def test_whatever_breaks_costs_its_own_trial_only() -> None:
    bad = "2=segfault,3=wrong,4=hang,5=raise,6=unbuildable,7=nan,8=late segfault"
    result = search(origin(bad=bad, limit=18, best=9), patience=3.0)
    assert fates(result) == {
        1: "timed",
        2: "crashed",
        3: "wrong",
        4: "hung",
        5: "failed",
        6: "not built",
        7: "wrong",
        8: "crashed",
    }
    assert result.config == {"size": 1} and result.is_default
    reasons = {trial.config["size"]: trial.reason for trial in result.trials}
    assert reasons[2] == reasons[8] == "SIGSEGV"
    assert reasons[3] == "error of the toy on 1 threads is 0.5, at most 1e-06 is allowed"
    assert "no answer within" in reasons[4]
    assert reasons[5] == "ArithmeticError: size 5 divides by zero"
    assert reasons[6] == "RuntimeError: the compiler said no"


def test_a_wrong_candidate_never_wins_however_fast() -> None:
    result = search(origin(bad="4=wrong"))
    assert result.config in ({"size": 3}, {"size": 5})


def test_a_broken_default_is_replaced() -> None:
    result = search(origin(bad="1=wrong", best=4))
    assert result.config == {"size": 4}
    assert result.default_seconds is None


def test_one_reason_is_told_once() -> None:
    error = NothingWorks("toy", [("a", "no compiler"), ("b", "crashed"), ("c", "no compiler")])
    assert str(error).splitlines()[1:] == ["  a and 1 more: no compiler", "  b: crashed"]


def test_nothing_works() -> None:
    with pytest.raises(NothingWorks, match=r"toy forward") as caught:
        search(origin(bad="1=wrong,2=raise", limit=4))
    text = str(caught.value)
    assert "size 1: error of the toy" in text
    assert "size 2: ArithmeticError" in text


def test_only_the_best_by_estimate_and_the_default_are_built(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    result = search(origin(default=6, built=str(built)), top=2)
    assert {path.name for path in built.iterdir()} == {"6", "1", "2"}
    assert set(fates(result)) == {6, 1, 2}


def test_without_time_the_default_stays_but_is_checked_and_timed() -> None:
    result = search(origin(), budget=1e-3)
    assert result.is_default and result.config == {"size": 1}
    assert result.seconds is not None
    assert set(fates(result).values()) == {"timed", "skipped"}


def interrupt_at(stage: str, step: int) -> Watch:
    def watch(name: str, reached: str, done: int, total: int) -> None:
        if (reached, done) == (stage, step):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    return watch


def test_an_interrupted_race_keeps_the_best_so_far() -> None:
    toy = origin()
    result = search(toy, watch=interrupt_at("time", 1))
    assert result.interrupted
    assert result.config == {"size": 4}, "the first round was complete"
    assert lookup(toy.tunables()[0].problem(), Device.current()) == {"size": 4}


def test_an_interrupt_before_the_race_keeps_the_default() -> None:
    result = search(origin(), watch=interrupt_at("check", 3))
    assert result.interrupted and result.is_default
    assert result.seconds is None


def test_an_interrupt_before_any_check_is_passed_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        search(origin(bad="2=interrupt"))


def test_an_unwritable_cache_does_not_lose_the_result(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    toy = origin()
    with pytest.warns(CacheWarning, match="not remembered"):
        result = search(toy)
    assert result.config == {"size": 4}
    assert lookup(toy.tunables()[0].problem(), Device.current()) == {"size": 4}


def test_a_family_is_tuned_within_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.tuner.ENOUGH_SECONDS", 1000.0)
    start = time.monotonic()
    results = list(tune_family(origin(), Device.current(), budget_seconds=1.0, top_k=3))
    assert [result.name for result in results] == ["toy forward"]
    assert time.monotonic() - start < 60


def test_a_family_that_cannot_be_imported() -> None:
    with pytest.raises(FamilyUnavailable, match="'no_such_module:family'"):
        Origin("no_such_module:family", {}).tunables()
    with (
        Worker(Origin("no_such_module:family", {})) as worker,
        pytest.raises(WorkerFailed, match="no_such_module"),
    ):
        worker.comparisons(10)


@pytest.mark.parametrize(
    ("candidate", "default", "expected"),
    [
        ((0.98,) * 9, (1.0,) * 9, True),
        ((0.995,) * 9, (1.0,) * 9, False),  # less than 1 %
        ((1.1,) * 9, (1.0,) * 9, False),
        ((0.5, 0.9, 1.3), (0.6, 1.0, 1.4), False),  # far less than the noise
        ((0.50, 0.51, 0.52), (0.9, 1.0, 1.1), True),
    ],
)
def test_a_lead_is_more_than_noise(
    candidate: tuple[float, ...], default: tuple[float, ...], expected: bool
) -> None:
    assert leads(Timing(candidate), Timing(default)) is expected


def test_without_a_lead_the_default_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.tuner.leads", lambda timing, default: False)
    result = search(origin())
    assert result.is_default and result.config == {"size": 1}
    assert result.seconds == result.default_seconds


ORPHAN = """
from autotune.registry import Origin
from autotune.worker import Worker
worker = Worker(Origin("autotune_toy:family",
    {"best": 1, "default": 1, "limit": 2, "bad": "1=hang", "built": "", "threads": 1}))
worker.start()
print(worker._process.pid, flush=True)
worker.check(0, {"size": 1}, 600)
"""


def test_a_hanging_candidate_does_not_outlive_a_killed_tuner() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(1.0)  # it hangs in its check now
    os.kill(worker, 0)  # alive
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        if not running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the measuring process lives on")


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
