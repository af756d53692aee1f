"""Loading checkpoints, and the model families that the loop can drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.models.base import BaseModel as BaseModel
    from research.models.load import load_model as load_model

_LAZY = {"BaseModel": "research.models.base", "load_model": "research.models.load"}

__all__ = ["BaseModel", "load_model"]


__getattr__ = lazy_names(__name__, _LAZY)
