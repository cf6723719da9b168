"""Candidates compiled without a GPU: what is out, what spills cost, and who survives a hang."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import cli, compiler_report
from autotune.compiler_report import Report, from_text
from autotune.compiling import Job, attempt, compilers, conflict, reranked, spill_factor, survey
from autotune.device import Device
from autotune.registry import Origin
from autotune.space import Candidate, Prediction

FAMILY = "autotune_toy_gpu:family"
H100 = Device.named("h100-sxm")


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the toy family where this process does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def origin(**options: int | str) -> Origin:
    defaults = {"head_dim": 32, "bad": "", "children": "", "device": "h100-sxm"}
    return Origin(FAMILY, {**defaults, **options})


def listing(*lines: str) -> str:
    head = [".section .text.k", "/*0000*/ NOP ;", ".L_1:"]
    body = [f"/*{16 * at:04x}*/ {line} ;" for at, line in enumerate(lines, 1)]
    return "\n".join([*head, *body, "/*fff0*/ @P0 BRA `(.L_1) ;", "/*ffff0*/ EXIT ;"])


def made(text: str, registers: int = 32, shared: int = 0, threads: int = 128) -> Report:
    usage = f"Function k:\n REG:{registers} STACK:0 SHARED:0 LOCAL:0"
    return from_text(usage, text, shared, threads)


def test_a_spill_costs_what_it_takes_of_the_loop() -> None:
    assert spill_factor(made(listing(*["FFMA R1, R1"] * 99))) == 1.0
    assert spill_factor(made(listing(*["FFMA R1, R1"] * 97, "STL [R1], R2", "LDL R2, [R1]"))) == (
        pytest.approx(1.08)
    )
    outside = listing(*["FFMA R1, R1"] * 99).replace("NOP", "STL.128 [R1], R2")
    assert made(outside).spill_store_bytes == 16
    assert spill_factor(made(outside)) == 1.0, "once, not in every step"


def test_what_cannot_launch_is_out_and_a_small_spill_is_not() -> None:
    tunable = origin().gpu_tunables()[0]
    clean, spilling = listing(*["FFMA R1, R1"] * 99), listing(*["FFMA R1, R1"] * 98, "STL [R1], R2")
    reports = [
        (1.0, made(clean, shared=228 * 1024)),  # the cheapest, but no H100 has so much
        (1.1, made(spilling)),
        (1.2, made(clean)),
        (1.01, made(clean, registers=255, threads=288)),
    ]
    attempts = [
        attempt(tunable, H100, first, Candidate({"warps": 4, "registers": 32}, seconds), report)
        for first, (seconds, report) in enumerate(reports)
    ]
    assert [a.first for a in reranked(attempts)] == [1, 2, 0, 3]
    assert attempts[0].failure == (
        "cannot launch: shared memory per block (bytes): 233,472 of 232,448"
    )
    assert attempts[3].failure == "cannot launch: registers per block: 98,304 of 65,536"
    assert [a.blocks for a in attempts] == [0, 16, 16, 0]
    assert [a.clean for a in attempts] == [False, False, True, False]
    assert math.isinf(attempts[0].seconds)
    assert attempts[1].seconds == pytest.approx(1.1 * 1.04)


def test_the_shorter_step_wins_among_equals() -> None:
    tunable = origin().gpu_tunables()[0]
    long, short = made(listing(*["FFMA R1"] * 20)), made(listing(*["FFMA R1"] * 10))
    candidate = Candidate({"warps": 4, "registers": 32}, 1.0)
    attempts = [attempt(tunable, H100, i, candidate, r) for i, r in enumerate((long, short))]
    assert [a.first for a in reranked(attempts)] == [1, 0]


def test_candidates_are_compiled_and_judged() -> None:
    toy = origin()
    with compilers(toy, 2) as run:
        attempts = survey(run, toy, toy.rivals()[0], H100, 4)
    assert [a.failure for a in attempts] == [""] * 4
    assert attempts == sorted(attempts, key=lambda a: a.seconds)
    for found in attempts:
        assert found.report is not None
        assert found.prediction == Prediction(
            found.candidate.config["registers"], 3072, 32 * found.candidate.config["warps"]
        )
        assert found.report.registers <= found.candidate.config["registers"]
        assert found.blocks > 0
        assert found.report.compile_seconds > 0


def alive(process: int) -> bool:
    """Whether it runs; what is dead may still wait to be collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_one_that_hangs_is_killed_with_its_children_and_the_others_go_on(tmp_path: Path) -> None:
    children = tmp_path / "children"
    toy = origin(bad="4=hang,2=raise,1=crash", children=str(children))
    tunable = toy.gpu_tunables()[0]
    configs = [{"warps": warps, "registers": 128} for warps in (4, 2, 1, 2)]
    with compilers(toy, 1, limit_seconds=5.0) as run:
        results = list(run([Job(toy, 0, config) for config in configs]))
        candidates = [Candidate(config, 1.0) for config in configs]
        attempts = [
            attempt(tunable, H100, i, c, r)
            for i, (c, r) in enumerate(zip(candidates, results, strict=True))
        ]
    said = "failed: RuntimeError: the compiler said no"
    assert [a.failure for a in attempts] == [
        "hung: no answer within 5 s",
        said,
        "crashed: SIGSEGV",
        said,
    ]
    assert all(a.out for a in attempts)
    assert not alive(int(children.read_text()))


def test_the_command_prints_the_table_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    words = ["compile", FAMILY, "--device", "l4", "--top", "3", "--jobs", "1", "--bad", "4=large"]
    assert cli.main([*words, "--json", str(report)]) == 0
    told = capsys.readouterr().out
    assert "toy recurrence, fused on NVIDIA L4 (sm_89)" in told
    assert "- (1) " in told
    assert "4 warps, at most 32 registers: cannot launch: shared memory per block" in told
    (tunable,) = json.loads(report.read_text())["tunables"]
    best, out, _ = tunable["attempts"]
    assert tunable["name"] == best["name"] == "toy recurrence, fused"
    assert (best["rank_before"], out["rank_before"], out["seconds"]) == (2, 0, None)
    assert best["actual"]["registers"] <= best["predicted"]["registers"]
    assert best["actual"]["step"]["tensor"] > 0


def test_where_nothing_fits_the_limit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", FAMILY, "--device", "l4", "--head-dim", "512"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "no configuration fits" in told
    assert "shared memory per block (bytes): 540,672 of 101,376" in told
    assert "toy recurrence, alternating on NVIDIA L4 (sm_89)" in told
    assert conflict(origin(head_dim=32).gpu_tunables()[0], H100) is None


def test_one_candidate_of_every_rival_is_compiled() -> None:
    toy = origin(rivals=1)
    (rivals,) = toy.rivals()
    with compilers(toy, 1) as run:
        attempts = survey(run, toy, rivals, H100, 1)
    assert [(a.candidate.of, a.clean) for a in attempts] == [(0, True), (1, True)]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([FAMILY, "--device", "h100"], 2, "did you mean h100-sxm or h100-pcie"),
        ([FAMILY, "--device", "l4", "--head-dim", "0"], 2, "--head-dim is 0; sizes start at 1"),
        ([FAMILY, "--device", "l4", "--bad", "no triton"], 1, "flashrnn-compiler[triton]"),
        (["autotune_toy:family", "--device", "l4"], 1, "toy has no kernels for GPUs"),
        (["nothing", "--device", "l4"], 2, "no kernel is called 'nothing'"),
    ],
)
def test_bad_usage(
    words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compile", *words]) == status
    assert told in capsys.readouterr().err


def test_without_triton_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        compiler_report.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "triton" else found(name, *more),
    )
    assert cli.main(["compile", FAMILY, "--device", "l4"]) == 1
    assert "pip install 'flashrnn-compiler[triton]'" in capsys.readouterr().err


def test_importing_the_command_needs_no_triton() -> None:
    program = (
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "sys.modules['triton'] = None\n"
        "import autotune.cli, autotune.compiler_report, autotune.compiling\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
