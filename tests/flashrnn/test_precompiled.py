"""Headers that are compiled once for the kernels that include them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from autotune.device import Device
from flashrnn.errors import CompilerError
from flashrnn.runtime import precompiled
from flashrnn.runtime.build import build
from flashrnn.runtime.toolchain import find_compiler


def kernel(number: int) -> Path:
    """A small one, whose first include is that of vectors."""
    text = f"""// a comment
#include "cpu/simd.hpp"
extern "C" int number() {{ return {number} + flashrnn::Simd<float, 32>::lanes; }}
"""
    return build(f"test-number-{number}", text, Device.current())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    if find_compiler().is_clang:
        pytest.skip("none is made for clang, which takes one by -include-pch alone")
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(precompiled, "_seen", Counter())
    monkeypatch.setattr(precompiled, "_refused", set())
    return tmp_path


def headers(cache: Path) -> list[Path]:
    return sorted((cache / "headers").rglob("*.gch"))


def test_the_third_kernel_makes_it_and_the_kernels_are_the_same(cache, monkeypatch) -> None:
    for number in range(2):
        kernel(number)
        assert not headers(cache)
    libraries = [kernel(number) for number in (2, 3)]
    (header,) = headers(cache)
    assert header.name == "simd.hpp.gch"
    assert not list((cache / "headers").rglob(".build*"))
    made = header.stat().st_mtime_ns
    monkeypatch.setattr(precompiled, "_seen", Counter())  # as in another process
    monkeypatch.setattr(precompiled, "_make", None)
    kernel(4)
    assert header.stat().st_mtime_ns == made
    monkeypatch.setattr(precompiled, "include", lambda *_: ())
    monkeypatch.setenv("FLASHRNN_CACHE", str(cache / "plain"))
    for number, library in zip((2, 3), libraries, strict=True):
        assert kernel(number).read_bytes() == library.read_bytes()


def test_it_is_what_the_compiler_takes(cache, monkeypatch) -> None:
    """A header that says otherwise than the source shows which was read."""
    for number in range(3):
        kernel(number)
    (header,) = headers(cache)
    source = cache / "other" / "cpu" / "simd.hpp"
    source.parent.mkdir(parents=True)
    source.write_text("#pragma once\n#error the source was read\n")
    monkeypatch.setattr("flashrnn.runtime.build.source_directory", lambda: cache / "other")
    kernel(3)
    header.unlink()
    monkeypatch.setattr(precompiled, "_make", lambda *_: False)
    with pytest.raises(CompilerError, match="the source was read"):
        kernel(4)


def test_a_damaged_one_is_not_used(cache) -> None:
    for number in range(3):
        kernel(number)
    (header,) = headers(cache)
    header.write_bytes(header.read_bytes()[:100_000])
    assert kernel(3).is_file()
    assert kernel(4).is_file()


def test_where_it_cannot_be_made_kernels_are(cache, tmp_path, monkeypatch) -> None:
    log = tmp_path / "log"
    wrapper = tmp_path / "compiler"
    command = " ".join(find_compiler().command)
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *c++-header*) echo >> {log}; exit 1;; esac\nexec {command} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    for number in range(5):
        assert kernel(number).is_file()
    assert not headers(cache)
    assert log.read_text() == "\n", "tried once"


def test_sources_and_compilers_that_it_is_not_for(cache) -> None:
    compiler = find_compiler()
    first = '#include "cpu/simd.hpp"\n'
    for _ in range(4):
        assert precompiled.include("int x;\n" + first, compiler, (), "k") == ()
        assert precompiled.include("#define X\n" + first, compiler, (), "k") == ()
        clang = type(compiler)(("clang++",), "Debian clang version 14.0.6")
        assert precompiled.include(first, clang, (), "k") == ()
    assert not headers(cache)
