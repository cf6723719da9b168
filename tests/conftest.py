"""Tests compile into a cache of their own, kept between runs beside pytest's."""

import os
from pathlib import Path

os.environ["FLASHRNN_CACHE"] = str(Path(__file__).parent.parent / ".pytest_cache" / "flashrnn")
