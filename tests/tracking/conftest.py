from __future__ import annotations

import sys
from pathlib import Path

# the fake sweep folders are shared with the report's tests
sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
