"""Fixtures of the runner's tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import tiny_sd

__all__ = ["tiny_sd"]
