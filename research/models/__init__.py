"""Loading checkpoints, and the model families that the loop can drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.models.base import BaseModel as BaseModel
    from research.models.load import load_model as load_model
    from research.models.own.model import wrap as wrap

_LAZY = {"BaseModel": "research.models.base", "load_model": "research.models.load", "wrap": "research.models.own.model"}

__all__ = ["BaseModel", "load_model", "wrap"]


__getattr__ = lazy_names(__name__, _LAZY)
