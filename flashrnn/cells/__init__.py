"""The cells that come with the library: each file is the only home of its equations."""

from flashrnn.cells.elman import elman, elman_relu
from flashrnn.cells.gru import gru
from flashrnn.cells.lstm import lstm
from flashrnn.cells.slstm import slstm

__all__ = ["elman", "elman_relu", "gru", "lstm", "slstm"]
