"""Errors that flashrnn raises on purpose: typed, naming the offending values and what works."""

from __future__ import annotations


class FlashRNNError(Exception):
    """Base of the library's errors."""


class CellError(FlashRNNError):
    """A cell's declaration or equations cannot be compiled."""


class ShapeError(FlashRNNError, ValueError):
    """A tensor's rank or size disagrees with the others."""


class DtypeError(FlashRNNError, TypeError):
    """A dtype that no kernel carries, or tensors of different dtypes."""


class DeviceError(FlashRNNError, ValueError):
    """Tensors on different devices, or on one that the back end cannot reach."""


class UnknownFunctionError(FlashRNNError, KeyError):
    """A cell name that nobody declared."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class BackendError(FlashRNNError, RuntimeError):
    """The back end that was asked for cannot run here, or no such back end exists."""


class CompilerError(BackendError):
    """No C++ compiler, or the compiler rejected a generated source."""


class DriverError(BackendError):
    """The CUDA driver refused what it was asked; the message has its own name for why."""


class OptionError(FlashRNNError, ValueError):
    """An option has a value that means nothing."""


class ArgumentError(FlashRNNError, TypeError):
    """An argument is of the wrong kind."""


class InputError(FlashRNNError, RuntimeError, ValueError):
    """A module was called with what it cannot take.

    Worded as torch.nn words it where it has words for it, and both of the kinds that torch.nn
    raises, so that code which catches or matches those keeps working.
    """


class ExportError(FlashRNNError):
    """A recurrence that cannot be written in the format it is exported to."""


class TilingError(FlashRNNError):
    """No tiling of a schedule fits the device."""
