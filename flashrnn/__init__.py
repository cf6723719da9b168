"""A compiler for recurrent kernels: equations in, fused kernels out.

`flashrnn(Wx, R, b, states, function="lstm")` runs a cell; `cell` declares one. Importing compiles
nothing and needs neither a GPU nor a compiler.
"""

from flashrnn import cells, nn
from flashrnn.api import Choice, choose_backend, flashrnn, layer
from flashrnn.errors import (
    ArgumentError,
    BackendError,
    CellError,
    CompilerError,
    DeviceError,
    DtypeError,
    ExportError,
    FlashRNNError,
    InputError,
    OptionError,
    ShapeError,
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

__all__ = [
    "ArgumentError",
    "BackendError",
    "Cell",
    "CellError",
    "Choice",
    "CompilerError",
    "DeviceError",
    "DtypeError",
    "ExportError",
    "FlashRNNError",
    "InputError",
    "OptionError",
    "ShapeError",
    "UnknownFunctionError",
    "cell",
    "cell_names",
    "cells",
    "choose_backend",
    "clamp",
    "equal",
    "exp",
    "flashrnn",
    "layer",
    "log_sigmoid",
    "maximum",
    "minimum",
    "nn",
    "reference",
    "sigmoid",
    "stop_gradient",
    "tanh",
    "where",
]
