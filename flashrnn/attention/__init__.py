"""Attention over every prefix: trained in parallel as a scan, streamed in constant memory."""

from flashrnn.attention.scan import attention_reduce, scan_attention, step
from flashrnn.attention.state import ScanState, merge

__all__ = ["ScanState", "attention_reduce", "merge", "scan_attention", "step"]
