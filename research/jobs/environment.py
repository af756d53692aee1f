"""With what a job was made: versions of the libraries, and the machine's device."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from research.package import VERSION

_LIBRARIES = ("torch", "diffusers", "transformers", "torchmetrics", "numpy", "hydra-core")

# in a process that a launcher started: launcher, host, pid, chunk and devices, for the record
worker: dict[str, Any] | None = None


@cache
def versions() -> dict[str, str]:
    """Of the project, Python and the libraries that have a say in the numbers."""
    found = {"research": VERSION, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """The commit of the working folder's repository, or else of the one that this package is run from: 40 hex digits, and
    ``-dirty`` where tracked files differ from it; None without either."""
    for folder in (os.getcwd(), os.path.dirname(__file__)):
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        if said.returncode == 0:
            return said.stdout.strip() or None
    return None


def device_name(device: Any) -> str:
    """A device as people call it: "cpu", or the GPU's index and model."""
    if getattr(device, "type", None) == "cuda":
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def world() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0
