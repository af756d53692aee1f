"""The command is tested on the same tiny model as the runner."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))

from tiny_model import tiny_sd

__all__ = ["tiny_sd"]
