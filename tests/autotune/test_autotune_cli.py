"""The command line from end to end, with a toy family in place of a kernel package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import cache, cli, registry
from autotune.errors import FamilyUnavailable

TOY = "autotune_toy:family"
QUICK = ["--budget", "120", "--threads", "1"]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autotune.compare.SECONDS", 0.05)
    monkeypatch.setattr("autotune.tuner.ENOUGH_SECONDS", 0.05)  # what ends a race, not the budget
    monkeypatch.setattr(registry, "registered", lambda: {"toy": TOY})
    monkeypatch.setattr(cli, "registered", lambda: {"toy": TOY})
    return tmp_path / "cache"


def test_run_then_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    status = cli.main(
        ["run", "toy", "--best", "6", "--bad", "3=wrong", *QUICK, "--json", str(report)]
    )
    out = capsys.readouterr().out
    assert status == 0
    assert "6 feasible configurations" in out
    assert "chosen    size 6" in out
    assert "space" in out and "12" in out
    assert "error of the toy on 1 threads 1e-07, at most 1e-06 allowed" in out
    assert "times as long" in out
    assert "wrong     size 3" in out
    assert "toy {'size': 6}" in out, "the comparison sees what was just tuned"
    assert "crashed: SIGSEGV" in out, "and one that crashes is shown as that"

    found = json.loads(report.read_text())
    assert found["options"] == {
        "best": 6, "default": 1, "limit": 12, "bad": "3=wrong", "built": "", "threads": 1
    }  # fmt: skip
    assert found["results"][0]["config"] == {"size": 6}
    assert len(found["results"][0]["trials"]) == 6
    good, crashed = found["comparisons"]
    assert 2 < good["ratio"] < 3.5
    assert crashed["ratio"] is None

    monkeypatch.setattr(cache, "_memo", {})
    assert cli.main(["show", "toy"]) == 0
    out = capsys.readouterr().out
    assert "size 6" in out and "this" in out


def test_a_reference_is_as_good_as_a_name_and_quiet_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", TOY, *QUICK, "--top", "2", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""
    assert len(cache.entries()) == 1


def test_an_unwritable_cache_is_a_warning_and_the_comparison_is_tuned_still(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.write_text("in the way")
    assert cli.main(["run", "toy", *QUICK, "--top", "4"]) == 0
    captured = capsys.readouterr()
    assert "autotune: warning: the tuned configuration" in captured.err
    assert "toy {'size': 4}" in captured.out


def test_nothing_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--limit", "2", "--bad", "1=wrong", *QUICK]) == 1
    assert "size 1: error of the toy" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "nope"], ["show", "nope"]])
def test_an_unknown_kernel_lists_the_known(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert "no kernel is called 'nope'; known: toy" in capsys.readouterr().err


def test_sizes_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--default", "0", *QUICK]) == 2
    assert "--default is 0; sizes start at 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["run", "toy", "--no-such-option"],
        ["run", "toy", "--budget", "0"],
        ["run", "toy", "--top", "1.5"],
        ["run", "toy", "--threads", "-1"],
    ],
)
def test_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: autotune" in capsys.readouterr().err


def test_the_kernels_own_options_are_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "toy", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "the problem (toy)" in out and "--limit" in out and "--budget" in out


def test_a_family_that_cannot_be_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["run", "no_such_module:family"]) == 1
    assert "no_such_module" in capsys.readouterr().err
    with pytest.raises(FamilyUnavailable, match="has no attribute 'nothing'"):
        registry.load_family("autotune_toy:nothing")


def test_an_interrupt_has_its_own_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "toy", "--bad", "2=interrupt", *QUICK]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_in_the_race_keeps_what_was_found(directory: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "autotune.cli", "run", TOY, "--budget", "60", "--top", "2"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    with process.stdout:
        while "time" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all in the foreground
        rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "interrupted: the best so far is kept" in rest
    [kept] = cache.entries()
    assert kept.config == {"size": 1}


def test_a_report_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / "no" / "where.json")
    assert cli.main(["run", "toy", *QUICK, "--top", "1", "--json", where]) == 1
    assert "where.json" in capsys.readouterr().err


def test_importing_the_package_loads_nothing_heavy_and_no_kernel() -> None:
    code = (
        "import sys, autotune; print([name for name in ('torch', 'numpy', 'networkx', 'rich', "
        "'constrint', 'flashrnn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    for word in ("vector_registers", "l2_bytes", "probe", "fingerprint", "generic"):
        assert word in out


def test_show_with_nothing_remembered(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show"]) == 0
    assert f"nothing is remembered in {directory}" in capsys.readouterr().out
