from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    """No key of the person who runs the tests, and no settings."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
