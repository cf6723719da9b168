"""The kernels of a check compiled ahead, by all cores at once.

What compilers make is kept on the disk, where the rows find it: compiled one after another, the
kernels would take several times as long as everything else.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait

from autotune.gpu import Gpu
from bench.gpu_check import cuda_kernels, kernels

MOST_PROCESSES = 16
Job = tuple[Callable[[int, Gpu], object], int]


def jobs() -> list[Job]:
    """Each kernel by its number, since problems do not travel between processes."""
    made: list[Job] = [(kernels.compile_one, i) for i in range(len(kernels.problems()))]
    return made + [(cuda_kernels.compile_one, i) for i in range(len(cuda_kernels.problems()))]


def compile_all(gpu: Gpu, asked: list[Job]) -> None:
    """Compile each; one that fails is left to its row, which tells why."""
    context = multiprocessing.get_context("spawn")
    processes = min(os.cpu_count() or 1, len(asked), MOST_PROCESSES)
    with ProcessPoolExecutor(processes, context) as pool:
        futures: list[Future[object]] = [pool.submit(job, index, gpu) for job, index in asked]
        wait(futures)
