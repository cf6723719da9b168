"""Tilings of the Triton kernels that were chosen beforehand, one JSON file per GPU."""

from flashrnn.packs.pack import Found, Pack, lookup

__all__ = ["Found", "Pack", "lookup"]
