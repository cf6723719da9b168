"""`flashrnn pack`: what it writes is what is found, chosen by the model or by the compiler too."""

import pytest

from autotune.device import Device
from autotune.errors import ToolFailed
from flashrnn import pack_check, pack_command, packs
from flashrnn.cells import elman
from flashrnn.cli import main
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.emit.cpp import FORWARD
from flashrnn.emit.scan import ATTENTION
from flashrnn.emit.triton import TRAINING
from flashrnn.packs import CELLS, CUDA, SCANS, cells, cuda, scans
from flashrnn.packs.pack import read
from flashrnn.passes.lower import lower
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tiling.triton import FusedTiling, TritonProblem
from flashrnn.tiling.triton_scan import TritonScanProblem

pytestmark = pytest.mark.usefixtures("own_packs")
T4 = Device.named("t4")


def test_the_command_writes_one(tmp_path, capsys, monkeypatch) -> None:
    every = scans.problems
    monkeypatch.setattr(scans, "problems", lambda: every((64,)))
    assert (
        main(
            [
                "pack",
                "--device",
                "t4",
                "--kernels",
                "elman",
                "scan-attention",
                "--backend",
                "triton",
            ]
        )
        == 0
    )
    path = tmp_path / "packs" / "t4.json"
    assert str(path) in capsys.readouterr().out
    problem = TritonProblem(lower(elman), TRAINING, BFLOAT16, Dims(16, 1, 4, 64))
    assert packs.lookup(CELLS, problem, T4).tiling == CELLS.best(problem, T4)
    scan = TritonScanProblem(ATTENTION, FORWARD, BFLOAT16, False, 8, 4096, 64)
    assert packs.lookup(SCANS, scan, T4).tiling == SCANS.best(scan, T4)
    assert read(path).versions["flashrnn-compiler"]


def test_the_command_compiles_cuda_kernels(tmp_path, monkeypatch) -> None:
    pytest.importorskip("cuda.bindings", reason="NVRTC is not installed")
    asked = {CUDA.name: cuda.problems([elman], (64,))[-1:]}
    monkeypatch.setattr(pack_command, "asked_for", lambda *_: asked)
    assert main(["pack", "--device", "l4", "--backend", "cuda", "--compile"]) == 0
    made = read(tmp_path / "packs" / "l4.json")
    assert made.versions.keys() >= {"nvrtc", "ptxas"}
    assert made.sections[CUDA.name].chosen_by == pack_check.BY_REPORT
    assert made.sections[CUDA.name].choices.keys() == {CUDA.key_of(p) for p in asked[CUDA.name]}


def test_what_is_wrong_with_a_cuda_kernel(monkeypatch) -> None:
    """With all of R in registers of four warps, which spills; and in eight's, which does not."""
    pytest.importorskip("cuda.bindings", reason="NVRTC is not installed")
    problem = CudaProblem(lower(elman), TRAINING, BFLOAT16, Dims(16, 1, 1, 256))
    faults = pack_check.compiling(None, Device.named("h100-sxm"))
    kernels = [(CUDA, problem, BlockTiling(*sizes)) for sizes in ((4, 8, 16), (8, 4, 4))]
    real, failed = pack_check.report, []

    def once_busy(compiled):
        if not failed:
            failed.append(compiled)
            raise ToolFailed("nvdisasm", "timed out")
        return real(compiled)

    monkeypatch.setattr(pack_check, "report", once_busy)
    assert list(faults(kernels)) == [pack_check.SPILLS, ""]
    assert failed


def test_the_command_writes_what_is_asked_for(tmp_path, capsys) -> None:
    assert main(["pack", "--device", "t4", "--kernels", "elman", "--backend", "triton"]) == 0
    assert read(tmp_path / "packs" / "t4.json").sections.keys() == {CELLS.name}
    nothing = ["pack", "--device", "t4", "--kernels", "scan-attention", "--backend", "cuda"]
    assert main(nothing) == 2
    assert "no kernels of back end cuda" in capsys.readouterr().err
    assert main(["pack", "--device", "t5"]) == 2
    assert "t4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pack", "--device", "t4", "--kernels", "elmo"])
    assert "scan-attention" in capsys.readouterr().err


def test_the_command_compiles(tmp_path, monkeypatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    asked = {CELLS.name: cells.problems([elman], (16,))[:1], SCANS.name: scans.problems((16,))[:1]}
    monkeypatch.setattr(pack_command, "asked_for", lambda *_: asked)
    words = ["pack", "--device", "l4", "--compile", "--jobs", "1", "--timeout", "200"]
    assert main(words) == 0
    made = read(tmp_path / "packs" / "l4.json")
    assert {s.chosen_by for s in made.sections.values()} == {pack_check.BY_REPORT}
    assert made.versions.keys() >= {"triton", "ptxas"}
    (choice,) = made.sections[CELLS.name].choices.values()
    assert all(isinstance(t, FusedTiling) for _, classes in choice for _, t in classes)
    assert len(made.sections[SCANS.name].choices) == 1
