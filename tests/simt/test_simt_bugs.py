"""Each kind of planted bug is caught, with threads and lines; the right kernel is silent."""

import re
from pathlib import Path

import numpy as np
import pytest
from simt_driver import ORDERS, Library, array, pointers

SOURCE = (Path(__file__).parent / "kernels.cpp").read_text()


@pytest.fixture(scope="module")
def library():
    return Library(SOURCE)


def launch(library, name, n, grid, cluster=1, block=64, order="forward", seed=0, races=True):
    source = array("in", np.arange(1, 513, dtype=np.float32))
    longer = 1 if name in ("past_global", "misaligned", "plain") else 2
    out = array("out", np.zeros(grid * block * longer, np.float32), "output")
    flag = array("flag", np.zeros(1, np.uint32), "read_write")
    issues = library.run(
        name, pointers(out, source, flag, n=n), [x.region for x in (out, source, flag)],
        (grid,), (block,), (cluster,), shared=4096, order=order, seed=seed, races=races,
    )  # fmt: skip
    return issues, out.values


WHO = r"block \(\d,0,0\) thread \(\d+,0,0\)"
AT = r"kernel.cpp:\d+:\d+"  # of a call; the instruction of a plain access has no column
LINE = r"kernel.cpp:\d+"
EITHER = "race: (read-after-write|write-after-read) in "


def race(kind: str, verbs: tuple[str, str], at: str = AT) -> str:
    found = rf"at byte \d+: {WHO} {verbs[0]} at {at}.* what {WHO} {verbs[1]} at {at}"
    return rf"race: {kind} in shared memory {found}.*, and nothing orders the two"


READ, OVERWRITTEN, TWICE = ("reads", "wrote"), ("writes", "read"), ("writes", "wrote")
DIVERGING = rf"divergence: {WHO} arrives at block_sync, {AT}, and {WHO} at {AT}"
# kernel, n, blocks, blocks per cluster, what is reported
BUGS = [
    ("neighbour", 1, 1, 1, race("read-after-write", READ)),
    ("overwritten", 1, 1, 1, race("write-after-read", OVERWRITTEN)),
    ("twice", 1, 1, 1, race("write-after-write", TWICE)),
    ("lanes", 1, 1, 1, EITHER + r"shared memory at byte "),
    ("past_global", 1, 1, 1, 'out-of-bounds: .*writes 4 bytes at .* past the end of "out"|race'),
    ("past_shared", 1, 1, 1, rf"out-of-bounds: {WHO} writes .* past the end of shared memory"),
    ("to_input", 1, 1, 1, rf'read-only: {WHO} writes to "in" at {AT}'),
    ("misaligned", 1, 1, 1, rf"misaligned: {WHO} accesses 8 bytes at {AT}"),
    ("diverging", 1, 1, 1, DIVERGING),
    ("same_line", 1, 1, 1, DIVERGING),
    ("ended", 1, 1, 1, "exited: .*(of its threads have ended|has ended while others wait)"),
    ("ended_lane", 1, 1, 1, "exited: .* names lanes in a vote, .* that have ended|deadlock"),
    ("mask", 1, 1, 1, "collective: .* not in the mask|divergence: .* another mask|deadlock"),
    ("stuck", 1, 1, 1, f"deadlock: 32 threads wait for ever; {WHO} in block_sync at {AT}"),
    ("polling", 1, 2, 1, 'race: read-after-write in "out" '),
    ("polling", 2, 2, 1, f"deadlock: 64 threads wait for ever; {WHO} in a poll at {AT}"),
    ("grid", 1, 3, 1, EITHER + '"out"'),
    ("grid", 2, 3, 1, EITHER + '"out"'),
    ("cooperative", 1, 2, 1, EITHER + '"out"'),
    ("copied", 1, 1, 1, f"in-flight: {WHO} reads shared memory at .* copy has not landed"),
    ("copied", 2, 1, 1, EITHER + "shared memory|in-flight"),
    ("clustered", 1, 2, 2, EITHER + "shared memory|exited"),
    ("clustered", 2, 2, 2, f"exited: {WHO} reads shared memory of block .*, which has ended"),
    ("other_cluster", 1, 4, 2, f"out-of-bounds: {WHO} reads .*at {AT}"),
    ("exchanged", 1, 2, 2, f"mbarrier: {WHO} is in st_async, {AT}, .*no fence_mbarrier_init"),
    ("exchanged", 2, 2, 2, f"deadlock: 128 threads .*; {WHO} in mbarrier_try_wait at {AT}"),
    ("exchanged", 3, 2, 2, "in-flight: .* (reads|writes) shared memory|race: .*an asynchronous"),
    ("exchanged", 4, 2, 2, "race: write-after-read in shared memory|in-flight"),
    ("unready", 1, 1, 1, "mbarrier: .*mbarrier_arrive.* that nothing has initialised"),
    ("plain", 1, 1, 1, race("read-after-write", READ, LINE)),
    ("plain", 2, 1, 1, rf'read-only: {WHO} writes to "in" at {LINE} '),
    ("plain", 3, 1, 1, rf"out-of-bounds: .* writes 4 bytes at {LINE} .* past the end of shared"),
    ("plain", 4, 1, 1, rf'out-of-bounds: .* writes 4 bytes at {LINE} .* past the end of "out"'),
    ("summed", 1, 2, 1, 'race: write-after-write in "flag"'),
]
RIGHT = sorted({(name, blocks, cluster) for name, _, blocks, cluster, _ in BUGS})
SCHEDULES = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "name, n, blocks, cluster, message", BUGS, ids=[f"{b[0]}-{b[1]}" for b in BUGS]
)
def test_a_bug_is_caught(library, name, n, blocks, cluster, message, order):
    issues, _ = launch(library, name, n, blocks, cluster, order=order)
    assert any(re.match(message, issue) for issue in issues), issues


@pytest.mark.parametrize("races", [True, False])
@pytest.mark.parametrize("order, seed", SCHEDULES)
@pytest.mark.parametrize("name, blocks, cluster", RIGHT)
def test_a_right_kernel_is_silent(library, name, blocks, cluster, order, seed, races):
    issues, out = launch(library, name, 0, blocks, cluster, order=order, seed=seed, races=races)
    assert issues == []
    assert not np.isnan(out[: blocks * 64]).any()


@pytest.mark.parametrize("threads, cluster", [(48, 1), (2048, 1), (64, 3)])
def test_a_launch_that_no_gpu_takes_is_refused(library, threads, cluster):
    (issue,), _ = launch(library, "twice", 0, 4, cluster, block=threads)
    assert issue.startswith("launch: a block of" if cluster == 1 else "launch: a grid of 4 blocks")


def test_a_flag_hands_over_with_fences_around_it(library):
    """Two relaxed accesses with a fence before and one behind order what a release orders."""
    for order in ORDERS:
        assert launch(library, "polling", 3, 2, order=order)[0] == []
