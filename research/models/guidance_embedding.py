"""The guidance scale as networks distilled from guided ones are told it (Meng et al., arXiv:2210.03142)."""

from __future__ import annotations

import torch
from torch import Tensor


def guidance_embedding(scale: float, rows: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of ``1000 * (scale - 1)`` [rows, width], sines first, as the UNets of latent consistency models take them.
    ``like`` is of the dtype and on the device that they are to have."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (torch.tensor(scale - 1).repeat(rows) * 1000.0)[:, None] * frequencies[None, :]
    found = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return torch.nn.functional.pad(found, (0, width % 2)).to(device=like.device, dtype=like.dtype)
