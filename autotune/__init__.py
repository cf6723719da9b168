"""Find the fastest configuration of a kernel on this machine, and remember it.

A kernel says what its configurations are (`Tunable`: a constraint model for a device) and how to
build, check and run one. This package solves the model, ranks the solutions by an analytic cost,
builds the best, checks each against the kernel's reference, times them in a process that it can
kill, and keeps the answer where `lookup` finds it.
"""

from autotune.cache import cache_directory, lookup
from autotune.device import Cpu, Device
from autotune.gpu import Gpu
from autotune.space import (
    Check,
    Comparison,
    Compiled,
    Config,
    Family,
    GpuFamily,
    GpuRunner,
    GpuTunable,
    Options,
    Prediction,
    Problem,
    Runner,
    Tunable,
)

__all__ = [
    "Check",
    "Comparison",
    "Compiled",
    "Config",
    "Cpu",
    "Device",
    "Family",
    "Gpu",
    "GpuFamily",
    "GpuRunner",
    "GpuTunable",
    "Options",
    "Prediction",
    "Problem",
    "Runner",
    "Tunable",
    "cache_directory",
    "lookup",
]
