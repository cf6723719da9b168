"""The cells that come with the library: each file is the only home of its equations."""

from flashrnn.cells.coupled_lstm import coupled_lstm
from flashrnn.cells.elman import elman, elman_relu
from flashrnn.cells.gru import gru
from flashrnn.cells.indrnn import indrnn
from flashrnn.cells.lstm import lstm
from flashrnn.cells.minimal_gru import minimal_gru
from flashrnn.cells.peephole_lstm import peephole_lstm
from flashrnn.cells.slstm import slstm

__all__ = [
    "coupled_lstm",
    "elman",
    "elman_relu",
    "gru",
    "indrnn",
    "lstm",
    "minimal_gru",
    "peephole_lstm",
    "slstm",
]
