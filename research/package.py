"""The installed package itself: its version, and where its Hydra configs are."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"


def config_dir() -> Path:
    """The folder of Hydra configs: inside the package when installed from a wheel, beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
