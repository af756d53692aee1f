"""Latents as the tokens that transformers take."""

from __future__ import annotations

from torch import Tensor


def pack(x: Tensor, patch: int = 2) -> Tensor:
    """Latents [N, C, h, w] as tokens [N, h/patch * w/patch, C * patch * patch], row by row of patches; in a token the values of a
    channel stand side by side (``_pack_latents`` of diffusers)."""
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, (h // patch) * (w // patch), c * patch * patch)


def unpack(tokens: Tensor, height: int, width: int, patch: int = 2) -> Tensor:
    """The inverse of `pack`: latents [N, C, height, width]."""
    n, _, wide = tokens.shape
    c = wide // patch**2
    cut = tokens.reshape(n, height // patch, width // patch, c, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(n, c, height, width)
