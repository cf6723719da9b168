"""Tilings of GPU kernels that were chosen beforehand, one JSON file per GPU."""

from flashrnn.packs.cells import CELLS
from flashrnn.packs.cuda import CUDA
from flashrnn.packs.kind import Kind
from flashrnn.packs.pack import Found, Pack, lookup
from flashrnn.packs.scans import SCANS

__all__ = ["CELLS", "CUDA", "SCANS", "Found", "Kind", "Pack", "lookup"]
