"""The cells that come with the library: each file is the only home of its equations."""

from flashrnn.cells.lstm import lstm

__all__ = ["lstm"]
