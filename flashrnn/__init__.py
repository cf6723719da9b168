"""A compiler for recurrent kernels: equations in, fused kernels out.

`flashrnn(Wx, R, b, states, function="lstm")` runs a cell; `cell` declares one. `scan_attention`,
`linear_scan` and `linear_attention` are recurrences that parallelise over time. Importing compiles
nothing and needs neither a GPU nor a compiler.
"""

from flashrnn import cells, nn
from flashrnn.api import Choice, choose_backend, flashrnn, layer
from flashrnn.attention import Aaren, attention_reduce, linear_attention, scan_attention
from flashrnn.errors import (
    ArgumentError,
    BackendError,
    CellError,
    CompilerError,
    DeviceError,
    DriverError,
    DtypeError,
    ExportError,
    FlashRNNError,
    InputError,
    OptionError,
    ShapeError,
    TilingError,
    UnknownFunctionError,
)
from flashrnn.ir.cell import Cell, cell, cell_names
from flashrnn.ir.ops import (
    clamp,
    equal,
    exp,
    log_sigmoid,
    maximum,
    minimum,
    sigmoid,
    stop_gradient,
    tanh,
    where,
)
from flashrnn.reference import reference
from flashrnn.scan import linear_scan

__all__ = [
    "Aaren",
    "ArgumentError",
    "BackendError",
    "Cell",
    "CellError",
    "Choice",
    "CompilerError",
    "DeviceError",
    "DriverError",
    "DtypeError",
    "ExportError",
    "FlashRNNError",
    "InputError",
    "OptionError",
    "ShapeError",
    "TilingError",
    "UnknownFunctionError",
    "attention_reduce",
    "cell",
    "cell_names",
    "cells",
    "choose_backend",
    "clamp",
    "equal",
    "exp",
    "flashrnn",
    "layer",
    "linear_attention",
    "linear_scan",
    "log_sigmoid",
    "maximum",
    "minimum",
    "nn",
    "reference",
    "scan_attention",
    "sigmoid",
    "stop_gradient",
    "tanh",
    "where",
]
