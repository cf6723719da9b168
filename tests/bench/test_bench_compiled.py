"""The suite `compile` from end to end, on toy kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.compiling import Attempt, Job
from autotune.gpu import Gpu
from autotune.space import Candidate, GpuTunable
from bench import cli
from bench.compiled import page, results, run
from bench.compiled.results import Case, Results, Row

TOY = "autotune_toy_gpu:family"
RUN = ["run", "--suite", "compile", "--cells", TOY, "--dtypes", "bfloat16", "--jobs", "1",
       "--directions", "toy recurrence"]  # fmt: skip


def attempt(registers: int = 100, spill: int = 0, seconds: float | None = 1.0) -> dict[str, Any]:
    actual = {
        "registers": 100, "shared_bytes": 2048, "threads": 128, "spill_store_bytes": spill,
        "spill_load_bytes": 0,
    }  # fmt: skip
    predicted = {"registers": registers, "shared_bytes": 2048, "threads": 128}
    return {"actual": actual, "predicted": predicted, "seconds": seconds, "failure": ""}


def row(head_dim: int, first: dict[str, Any], chosen: dict[str, Any], tried: int = 1) -> Row:
    case = Case("lstm", "bfloat16", head_dim, "l4", 89)
    return Row(case, "forward", "fused", "fused", "", first, chosen, tried, {"D": head_dim})


ROWS = (
    row(16, attempt(registers=90), attempt()),
    row(32, attempt(spill=16), attempt(), tried=2),
    row(64, attempt(seconds=None), {**attempt(seconds=None), "failure": "it hangs"}, tried=6),
)
FORCED = replace(
    row(128, attempt(), attempt()),
    schedule="alternating", chosen_schedule="alternating", forced_by="registers",
)  # fmt: skip
MOVED = replace(
    row(256, attempt(spill=12), attempt(), tried=3),
    chosen_schedule="alternating", forced_by="it spills",
)  # fmt: skip


def test_the_figures() -> None:
    rows = [*ROWS, FORCED]
    assert results.share(rows, "right_at_first") == 0.5
    assert results.share(rows, "right_after") == 0.75
    found = results.errors(rows, "registers")
    assert found is not None
    assert (found.median, found.worst) == (0.0, pytest.approx(-0.1))
    assert found.worst_case == "lstm bfloat16 D=16 sm_89 forward"
    assert results.largest_fused(rows) == {("lstm", "bfloat16", "forward", 89): 32}
    low = attempt()
    low["predicted"]["shared_bytes"] = 2047
    assert len(results.too_low([*rows, row(8, low, low)])) == 1


def test_the_page() -> None:
    text = page.page(Results({"triton": "3.9.0"}, "2026-11-25", (*ROWS, FORCED, MOVED)))
    assert "2026-11-25, triton 3.9.0. One GPU stands for each architecture: l4 for sm_89." in text
    assert "| right at first choice | 40.0% |" in text
    assert "| right after the compiler's report | 80.0% |" in text
    assert "| lstm | bfloat16 | forward | 32 |" in text
    assert "| lstm | 16 | forward | 4w 90 > 100, 2 > 2 |" in text
    assert "| lstm | 32 | forward | 4w 100 > 100, 2 > 2, s 16, 2. |" in text
    assert "| lstm | 64 | forward | 4w 100 > 100, 2 > 2, none right |" in text
    assert "| lstm | 128 | forward | alternating |" in text
    assert "| lstm | 256 | forward | 4w 100 > 100, 2 > 2, s 12, alternating |" in text
    assert "- it spills: 1 kernels, among them lstm bfloat16 D=256 sm_89 forward" in text
    assert "- registers: 1 kernels, among them lstm bfloat16 D=128 sm_89 forward" in text
    assert "- lstm bfloat16 D=64 sm_89 forward, best of 6: it hangs" in text
    kept = attempt(spill=12)
    kept["actual"]["step"] = {"fma": 99, "local load": 1}
    text = page.page(Results({}, "", (row(96, kept, kept, tried=2),)))
    assert "best of 2: spills 12 bytes and loads them with 1 of the 100 instructions" in text


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "autotune"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "bench-compile.json"


def test_a_run_goes_on_where_an_earlier_one_ended(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN, "--devices", "l4", "--page", "page.md", "--head-dims"]
    assert cli.main([*words, "32"]) == 0
    first = json.loads(toy.read_text())["rows"]
    assert [(r["case"]["head_dim"], r["schedule"]) for r in first] == [(32, "fused")]

    compiled = []
    settle = run._settle
    monkeypatch.setattr(
        run, "_settle", lambda new, with_: compiled.append(new) or settle(new, with_)
    )
    assert cli.main([*words, "32", "512"]) == 0
    assert [search.case.head_dim for searches in compiled for search in searches] == [512]
    rows = json.loads(toy.read_text())["rows"]
    assert rows[0] == first[0], "kept as it is"
    assert (rows[1]["schedule"], rows[1]["tried"]) == ("alternating", 1)
    assert "shared memory per block (bytes): 540,672 of 101,376" in rows[1]["forced_by"]
    told = capsys.readouterr().out
    assert "right after the compiler's report: 100.0%" in told
    assert "alternating" in Path("page.md").read_text()
    assert cli.main(["show", str(toy)]) == 0
    assert "kernels: 2, 1 of them fused" in capsys.readouterr().out


def test_what_other_versions_compiled_is_not_kept(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Results({"triton": "0.1"}, "2020", ROWS)
    results.write(old, toy)
    assert results.read(toy) == old
    found = run.run([], [], lambda jobs: iter(()), old, lambda results: None, lambda *step: None)
    assert found.rows == ()
    assert found.versions.keys() == {"triton", "ptxas", "ptxas-blackwell"}


def test_where_every_fused_tiling_spills_the_next_schedule_is_chosen(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def judged(
        tunable: GpuTunable, device: Gpu, first: int, candidate: Candidate, _made: Any
    ) -> Attempt:
        spilled = 12 if tunable.name.endswith("fused") else 0
        report = SimpleNamespace(
            spilled=spilled > 0, spill_store_bytes=spilled, step=None,
            facts=lambda: attempt(spill=spilled)["actual"],
        )  # fmt: skip
        prediction = tunable.predict(candidate.config, device)
        return Attempt(candidate, "", first, prediction, report, "", 1, 1.0)  # type: ignore[arg-type]

    def compile_(jobs: Sequence[Job]) -> Iterator[Any]:
        tried.extend(job.index for job in jobs)
        return iter([job.index for job in jobs])

    monkeypatch.setattr(run, "attempt", judged)
    case = Case(TOY, "bfloat16", 272, "h100-sxm", 90)  # the toy has both schedules here
    nothing = (None, lambda found: None, lambda *step: None)
    (found,) = run.run([case], ["toy recurrence"], compile_, *nothing).rows
    assert sorted(tried) == tried, "fused ones first"
    assert (found.schedule, found.chosen_schedule) == ("fused", "alternating")
    assert (found.right_at_first, found.right_after, found.tried) == (False, True, len(tried))
    assert found.forced_by == (
        f"none of {len(tried) - 1} fused tilings compiles without spills "
        "(the best: it spills 12 bytes)"
    )
