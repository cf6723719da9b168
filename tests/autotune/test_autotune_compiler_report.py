"""What is read from machine code: on recorded text, and on kernels that Triton compiles here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from autotune_toy_gpu import ROWS, compile_recurrence

from autotune import compiler_report, sass
from autotune.compiler_report import from_text, report, tools
from autotune.errors import MissingExtra, ToolFailed
from autotune.gpu import architecture
from autotune.space import Compiled

D = 32

# In the form of nvdisasm 13.1: a loop with a rare path that lies behind the end, an inner loop
# that waits, a branch that is conditional by an operand, and the padding that ends every kernel.
TEXT = """
	.section	.text.kernel,"ax",@progbits
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/                   LDG.E.128 R4, desc[UR6][R20.64] ;
        /*0020*/              @!P0 EXIT ;
.L_x_0:
        /*0030*/                   LDSM.16.MT88.4 R24, [R44] ;
        /*0040*/                   HMMA.16816.F32.BF16 R20, R4, R24, RZ ;
        /*0050*/                   MUFU.EX2 R2, R2 ;
        /*0060*/                   STL.64 [R1], R2 ;
.L_x_1:
        /*0070*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R3 ;
        /*0080*/              @!P1 BRA `(.L_x_1) ;
        /*0090*/              @!P2 BRA `(.L_x_3) ;
.L_x_2:
        /*00a0*/                   LDL.64 R2, [R1] ;
        /*00b0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00c0*/                   BRA.U UP0, `(.L_x_0) ;
        /*00d0*/                   STG.E desc[UR6][R20.64], R2 ;
        /*00e0*/                   EXIT ;
.L_x_3:
        /*00f0*/                   FFMA R2, R2, R2, R2 ;
        /*0100*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0110*/                   BRA `(.L_x_4);
        /*0120*/                   NOP;
"""
RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function kernel:
  REG:40 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:912 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_loops_follow_the_flow_of_control_not_the_text() -> None:
    (function,) = sass.parse(TEXT)
    assert [(loop.depth, len(loop.code)) for loop in function.loops] == [(1, 12), (2, 2)]
    main = function.main_loop
    assert main is not None
    assert main.code.mnemonics["FFMA"] == 1, "the rare path belongs to the loop"
    assert main.code.mnemonics["STG"] == 0
    assert main.code.classes == {
        "tensor": 1, "fma": 1, "global load": 0, "global store": 0, "shared load": 1,
        "shared store": 0, "local load": 1, "local store": 1, "special": 1, "barrier": 2,
        "shuffle": 0, "other": 4,
    }  # fmt: skip


def test_the_report_of_recorded_text() -> None:
    found = from_text(RESOURCES, TEXT, shared_bytes=40_000, threads=128)
    assert (found.registers, found.stack_bytes, found.shared_bytes) == (40, 8, 40_000)
    assert (found.spill_store_bytes, found.spill_load_bytes, found.spilled) == (8, 8, True)
    assert found.occupancy(architecture(120)) == 2
    assert found.limiting(architecture(120)) == "shared memory"
    assert found.facts()["step_shared_matrix_loads"] == 1


def test_text_without_the_function_is_an_error() -> None:
    with pytest.raises(ToolFailed, match="no function with code"):
        from_text(RESOURCES.replace("kernel", "other"), TEXT, 0, 32)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("HMMA.16816.F32.BF16", "tensor"), ("HGMMA.64x64x16.F32.BF16", "tensor"),
        ("UTCHMMA", "tensor"), ("IMMA.16832.S8.S8", "tensor"), ("QMMA.16832.F32", "tensor"),
        ("FFMA", "fma"), ("FFMA2", "fma"), ("HFMA2.MMA", "fma"),
        ("LDGSTS.E.BYPASS.128", "global load"),
        ("LDG.E", "global load"), ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "global store"),
        ("LDGDEPBAR", "other"), ("LDSM.16.M88.4", "shared load"), ("LDC.64", "other"),
        ("STS.128", "shared store"), ("STL", "local store"), ("MUFU.TANH", "special"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"), ("SHFL.BFLY", "shuffle"), ("BRA.U", "other"),
    ],
)  # fmt: skip
def test_classes(name: str, kind: str) -> None:
    (function,) = sass.parse(f".section .text.f\n /*0000*/ {name} R1, R2 ;\n")
    assert function.code.instructions[0].kind == kind


def compiled(sm: int, warps: int = 4, registers: int | None = None) -> Compiled:
    kernel = compile_recurrence(sm, D, warps, registers)
    return Compiled(kernel.asm["cubin"], kernel.metadata.shared, 32 * warps, 0.0)


@pytest.mark.parametrize("sm", [80, 120])
def test_a_recurrence_that_triton_compiles(sm: int) -> None:
    found = report(compiled(sm))
    assert 16 <= found.registers <= 128
    assert not found.spilled
    assert found.shared_bytes == compiled(sm).shared_bytes
    step = found.step
    assert step is not None
    # each warp has its part of 16 x 32 x 32 multiply-adds, 16 x 8 x 16 per instruction
    assert step.code.classes["tensor"] == ROWS * D * D // (16 * 8 * 16) // 4
    assert step.code.classes["global load"] == step.code.classes["global store"] == 1
    assert step.code.classes["special"] == 2 * ROWS * D // 128
    assert step.code.classes["barrier"] >= 1
    assert found.code.classes["global load"] > 1, "R is loaded before the loop"
    assert found.occupancy(architecture(sm)) > 0


def test_spills_are_what_the_assembler_says(tmp_path: Path) -> None:
    kernel = compile_recurrence(80, 64, 1, 32)
    (tmp_path / "kernel.ptx").write_text(kernel.asm["ptx"])
    said = subprocess.run(
        [tools()["ptxas"], "-v", "--gpu-name=sm_80", "--maxrregcount=32", "kernel.ptx"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    stores, loads = (
        int(re.search(rf"(\d+) bytes spill {w}", said)[1]) for w in ("stores", "loads")
    )
    found = report(Compiled(kernel.asm["cubin"], kernel.metadata.shared, 32, 0.0))
    assert stores > 0
    assert (found.spill_store_bytes, found.spill_load_bytes) == (stores, loads)
    assert found.registers <= 32


def test_nested_loops_that_triton_compiles() -> None:
    import autotune_toy_kernels as kernels
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"x": "*fp32", "y": "*fp32", "T": "i32", "K": "i32", "SIZE": "constexpr"}
    source = ASTSource(fn=kernels.nested, signature=types, constexprs={"SIZE": 128})
    kernel = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}
    )
    found = report(Compiled(kernel.asm["cubin"], kernel.metadata.shared, 128, 0.0))
    assert {loop.depth for loop in found.function.loops} == {1, 2}
    assert found.step is not None
    assert found.step.code.classes["special"] == 1
    inner = [loop for loop in found.function.loops if loop.depth == 2]
    assert all(loop.code.classes["special"] == 0 for loop in inner)
    assert any(loop.code.classes["global load"] > 0 for loop in inner)


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'flashrnn-compiler\[triton\]'"):
        report(Compiled(b"", 0, 32, 0.0))


def test_what_is_no_cubin_is_an_error() -> None:
    with pytest.raises(ToolFailed, match="cuobjdump failed"):
        report(Compiled(b"no cubin", 0, 32, 0.0))
