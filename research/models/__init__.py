"""Loading checkpoints, and the model families that the loop can drive."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.models.base import BaseModel as BaseModel
    from research.models.load import load_model as load_model

_LAZY = {"BaseModel": "research.models.base", "load_model": "research.models.load"}

__all__ = ["BaseModel", "load_model"]


def __getattr__(name: str) -> Any:
    # research.models.locate checks a path when a job is composed, without torch
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'research.models' has no attribute '{name}'")
