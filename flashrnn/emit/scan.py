"""C++ entry points for the scans of csrc/cpu: the tiling as constexpr lines, nothing else."""

from __future__ import annotations

from flashrnn.dtypes import Dtype
from flashrnn.emit.cpp import BACKWARD

ATTENTION, LINEAR = "scan attention", "linear scan"

# Per kind: the header's name and the class's, without the direction.
_SCHEDULES = {ATTENTION: ("scan_attention", "ScanAttention"), LINEAR: ("scan_linear", "ScanLinear")}


def emit_scan(
    kind: str,
    direction: str,
    storage: Dtype,
    real: Dtype,
    *,
    is_complex: bool,
    vector_bytes: int,
    vectors_per_panel: int,
    heads_per_panel: int,
    streaming: bool,
    bytes_ahead: int,
) -> str:
    """The source of one scan. kind: ATTENTION or LINEAR; direction: FORWARD or BACKWARD.

    storage: how numbers lie in memory; real: the type of the arithmetic. For LINEAR alone:
    is_complex, numbers are pairs. For ATTENTION alone: heads_per_panel, streaming (whether results
    may bypass the caches), and bytes_ahead, 0 to fetch nothing.
    """
    header, name = _SCHEDULES[kind]
    backward = direction == BACKWARD
    header += "_backward" if backward and kind == ATTENTION else ""
    values = ""
    parameters = ["Simd<Real, vector_bytes>", "Stored", "vectors_per_panel"]
    if kind == LINEAR:
        parameters.append("true" if is_complex else "false")
    else:
        parameters += ["heads_per_panel", "streaming", "bytes_ahead"]
        values = f"constexpr int heads_per_panel = {heads_per_panel};\n"
        values += f"constexpr bool streaming = {'true' if streaming else 'false'};\n"
        values += f"constexpr int bytes_ahead = {bytes_ahead};\n"
    return f"""\
// {kind}, {direction}, {storage.name}{", complex" if is_complex else ""}.
// Tiling: panels of up to {vectors_per_panel} vectors in registers.
#include "cpu/{header}.hpp"

using namespace flashrnn;
using Real = {real.cpp};
using Stored = {storage.cpp};
constexpr int vector_bytes = {vector_bytes};
constexpr int vectors_per_panel = {vectors_per_panel};
{values}using Kernel = {name}{"Backward" if backward else ""}<{", ".join(parameters)}>;

// Size of the workspace in numbers.
FLASHRNN_EXPORT int64_t flashrnn_workspace(const Kernel::Arguments* arguments) {{
  int64_t needed = 0;
  Kernel(*arguments, nullptr, &needed);
  return needed;
}}

FLASHRNN_EXPORT void flashrnn_run(const Kernel::Arguments* arguments) {{
  Kernel(*arguments, arguments->workspace).run();
}}
"""
