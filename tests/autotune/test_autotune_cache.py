"""What is remembered survives crashes of writers, foreign files and directories without leave."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from autotune import cache
from autotune.cache import Entry
from autotune.device import Device, describe
from autotune.errors import CacheWarning

PROBLEM: dict[str, int | str] = {"kernel": "toy", "size": 64, "dtype": "float32"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(size: int = 3, **changes: object) -> Entry:
    made = Entry(
        name="toy forward",
        device=Device.current().fingerprint,
        problem=dict(PROBLEM),
        config={"size": size},
        description=f"size {size}",
        seconds=1e-3,
        default_seconds=None,
        binding=["space: 6 of 6 used"],
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows: nothing but the disk."""
    monkeypatch.setattr(cache, "_memo", {})


def only_file(directory: Path) -> Path:
    [path] = (directory / "tuned").iterdir()
    return path


def test_stored_then_found_by_this_process_and_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device.current()
    assert cache.lookup(PROBLEM, device) is None
    assert cache.store(entry(3)) is True
    assert cache.lookup(PROBLEM, device) == {"size": 3}, "a miss is not remembered past a store"
    forget(monkeypatch)
    assert cache.lookup(PROBLEM, device) == {"size": 3}
    assert cache.entries() == [entry(3, when=cache.entries()[0].when)]


def test_another_problem_or_device_is_another_entry(tmp_path: Path) -> None:
    cache.store(entry(3))
    assert cache.lookup({**PROBLEM, "size": 65}, Device.current()) is None
    assert cache.lookup(PROBLEM, describe(tmp_path, range(77))) is None


def test_the_time_of_a_step_is_kept_beside_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device.current()
    assert cache.step_seconds(PROBLEM, device) is None, "nothing is remembered"
    cache.store(replace(entry(3), seconds=6.0, steps=4))
    assert cache.step_seconds(PROBLEM, device) == 1.5
    forget(monkeypatch)
    assert cache.step_seconds(PROBLEM, device) == 1.5
    cache.store(replace(entry(3), seconds=None, steps=4))
    assert cache.step_seconds(PROBLEM, device) is None, "nothing was timed"


def test_callers_learn_that_an_answer_changed() -> None:
    before = cache.generation()
    cache.lookup(PROBLEM, Device.current())
    assert cache.generation() == before
    cache.store(entry(3))
    assert cache.generation() != before


def test_later_lookups_do_not_touch_the_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(entry(3))
    forget(monkeypatch)
    device = Device.current()
    other = {**PROBLEM, "size": 65}
    assert cache.lookup(PROBLEM, device) == {"size": 3}
    assert cache.lookup(other, device) is None
    monkeypatch.setattr(cache, "_read", lambda path: pytest.fail("read the disk again"))
    assert cache.lookup(PROBLEM, device) == {"size": 3}
    assert cache.lookup(other, device) is None


def test_the_caller_may_change_what_it_got() -> None:
    cache.store(entry(3))
    found = cache.lookup(PROBLEM, Device.current())
    assert found is not None
    found["size"] = 99
    assert cache.lookup(PROBLEM, Device.current()) == {"size": 3}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{ not json",
        b"\xff\xfe",
        b"[1, 2]",
        json.dumps({**asdict(entry()), "schema": 99}).encode(),
        json.dumps({**asdict(entry()), "config": {"size": "3"}}).encode(),
        json.dumps({**asdict(entry()), "colour": "red"}).encode(),
        json.dumps({**asdict(entry()), "steps": 0}).encode(),
        json.dumps({**asdict(entry()), "seconds": "3"}).encode(),
        json.dumps({"schema": cache.SCHEMA}).encode(),
    ],
)
def test_an_unreadable_entry_is_discarded(
    content: bytes, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(entry())
    path = only_file(directory)
    path.write_bytes(content)
    forget(monkeypatch)
    with pytest.warns(CacheWarning, match="discarded unreadable"):
        assert cache.lookup(PROBLEM, Device.current()) is None
    assert not path.exists()


def test_an_entry_under_a_wrong_name_is_not_believed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(entry())
    path = only_file(directory)
    path.write_text(json.dumps(asdict(entry(problem={"kernel": "other"}))))
    forget(monkeypatch)
    assert cache.lookup(PROBLEM, Device.current()) is None


def deny(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("how", ["file in the way", "no permission"])
def test_a_directory_that_cannot_be_written(
    how: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "file in the way":
        directory.write_text("not a directory")
    else:
        monkeypatch.setattr(tempfile, "mkstemp", deny)
    with pytest.warns(CacheWarning, match="FLASHRNN_CACHE"):
        assert cache.store(entry(5)) is False
    assert cache.lookup(PROBLEM, Device.current()) == {"size": 5}, "this process knows it still"
    assert cache.entries() == []


def test_a_failed_write_leaves_the_old_entry_and_no_litter(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(entry(3))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.warns(CacheWarning, match="no space left"):
        cache.store(entry(4))
    forget(monkeypatch)
    assert cache.lookup(PROBLEM, Device.current()) == {"size": 3}
    assert len(list((directory / "tuned").iterdir())) == 1


WRITER = """
import sys
from autotune import cache
from autotune.cache import Entry
from autotune.device import Device
size = int(sys.argv[1])
for _ in range(200):
    cache.store(Entry(
        name="toy forward", device=Device.current().fingerprint,
        problem={"kernel": "toy", "size": 64, "dtype": "float32"}, config={"size": size},
        description=str(size) * 2000, seconds=1.0, default_seconds=1.0, binding=[],
    ))
"""


def test_two_writers_and_a_reader_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(entry(1))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, size]) for size in ("1", "2")]
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        while any(writer.poll() is None for writer in writers):
            forget(monkeypatch)
            found = cache.lookup(PROBLEM, Device.current())
            assert found is not None
            seen.add(found["size"])
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= {1, 2}
    assert len(list((directory / "tuned").iterdir())) == 1


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("FLASHRNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_directory() == tmp_path / "xdg/flashrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.cache_directory() == tmp_path / ".cache/flashrnn"
