"""Recurrent modules that are called as torch.nn's are: LSTM, GRU, RNN, SLSTM, and any cell.

rnn = flashrnn.nn.LSTM(128, 256, num_layers=2, bidirectional=True)
output, (h, c) = rnn(x)
"""

from flashrnn.nn.any_cell import SLSTM, RNNLayer
from flashrnn.nn.convert import Conversion, convert, from_torch
from flashrnn.nn.torch_layout import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "Conversion",
    "RNNLayer",
    "convert",
    "from_torch",
]
