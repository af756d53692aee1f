"""Jobs that run in a blink: their settings, and a working folder with plugs of a test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def settings_of(model: Path, *, steps: int = 3, prompts: str = "[fox,owl]") -> list[str]:
    """The command line of a small job that is neither scored nor mirrored."""
    return [
        f"model.path={model}",
        "tracker=none",
        "metrics=none",
        f"steps={steps}",
        f"prompts={prompts}",
        "runtime.threads=1",
    ]


def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, plugs: str) -> Path:
    """Make ``folder`` the current one, with ``plugs`` in it as a module that configs may name."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / f"{module}.py").write_text(plugs)
    sys.modules.pop(module, None)
    return folder
