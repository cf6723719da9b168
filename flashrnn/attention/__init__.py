"""Attention over every prefix: trained in parallel as a scan, streamed in constant memory."""

from flashrnn.attention.aaren import Aaren, AarenBlock, AarenStack
from flashrnn.attention.linear import linear_attention, linear_attention_step
from flashrnn.attention.scan import attention_reduce, scan_attention, step
from flashrnn.scan_reference import ScanState, merge

__all__ = [
    "Aaren",
    "AarenBlock",
    "AarenStack",
    "ScanState",
    "attention_reduce",
    "linear_attention",
    "linear_attention_step",
    "merge",
    "scan_attention",
    "step",
]
