"""Ready hooks."""

from research.hooks.latent_transform import LatentTransform
from research.hooks.nan_guard import NanGuard
from research.hooks.record import Record

__all__ = ["LatentTransform", "NanGuard", "Record"]
