"""Linear recurrences by a scan, and layers whose recurrence is one."""

from flashrnn.scan.diagonal import DiagonalStateSpace
from flashrnn.scan.linear import linear_scan
from flashrnn.scan.min_gru import MinGRU
from flashrnn.scan.quasi_lstm import QuasiLSTM

__all__ = ["DiagonalStateSpace", "MinGRU", "QuasiLSTM", "linear_scan"]
