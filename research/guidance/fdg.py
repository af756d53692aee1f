"""Frequency-decoupled guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from research.errors import ConfigError
from research.guidance.pairs import Pair
from research.guidance.weighted import checked_weights
from research.sampling.interfaces import StepState

_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class FDG(Pair):
    """Frequency-decoupled guidance (Sadat et al., arXiv:2506.19713, section 4 and algorithm 1): CFG with a scale a
    frequency band.

    The bands are those of a Laplacian pyramid, from the finest to the coarsest. Band ``i`` is guided with ``1 + (scale -
    1) * weights[i]``, and so with equal weights of 1 it is CFG. Pyramids are linear: the result is the same whatever the
    model predicts, and there is no space to choose. The pyramid is that of the published code (kornia's ``pyrdown`` and
    ``pyrup``: the binomial filter with mirrored borders, bilinear sizes); on purpose different: sides need not halve evenly.

    Args:
        scale: of a band with weight 1; 1 is no guidance and costs one evaluation a stage.
        weights: one a band, the finest first, from 0; their number is that of the bands. The paper wants less of the coarse
            ones, which decide composition and saturation: its 10 and 5 for SDXL are ``scale=10, weights=[1, 0.44]``.

    Raises:
        ConfigError: the scale is not a finite number, or the weights are none, negative, not finite, or all 0.
    """

    def __init__(self, scale: float = 7.5, weights: Sequence[float] = (1.0, 0.5)):
        super().__init__(scale)
        self.weights = checked_weights(weights)
        if min(self.weights) < 0:
            raise ConfigError(f"guidance.weights: found {list(weights)!r}; accepted are numbers from 0.")

    def vectorises(self) -> bool:
        return self.scale != 1

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        bands = laplacian_pyramid(c - u, len(self.weights))
        scale_in_force = state.scale_of(self)
        scales = [1 + (scale_in_force - 1) * weight for weight in self.weights]
        update = scales[-1] * bands[-1]
        for band, scale in zip(bands[-2::-1], scales[-2::-1], strict=True):
            update = enlarged(update, band.shape[-2:]) + scale * band
        return u + update


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Bands of an image [N, C, h, w], the finest first, each half as large as the one before, rounded up; the last is the
    coarse rest.

    Each band is an image less its enlarged coarser version (Burt & Adelson, 1983), so that they add up to the image again
    whatever its size and whatever the filter.
    """
    bands = []
    for _ in range(levels - 1):
        coarse = shrunk(x)
        bands.append(x - enlarged(coarse, x.shape[-2:]))
        x = coarse
    return [*bands, x]


def shrunk(x: Tensor) -> Tensor:
    """Blurred and half as large, rounded up."""
    size = [(side + 1) // 2 for side in x.shape[-2:]]
    return functional.interpolate(blurred(x), size, mode="bilinear", align_corners=False)


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarged to a size and blurred."""
    return blurred(functional.interpolate(x, list(size), mode="bilinear", align_corners=False))


def blurred(x: Tensor) -> Tensor:
    """Blurred with the binomial filter of five points; beyond the border it is mirrored at the last pixel, as in the paper's code
    (kornia's pyramids). Sides of one and two pixels, which have nothing to mirror, go on with the last."""
    kernel = torch.tensor(_KERNEL, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    for side, pad, shape in ((-1, (2, 2, 0, 0), (1, 1, 1, 5)), (-2, (0, 0, 2, 2), (1, 1, 5, 1))):
        mode = "reflect" if flat.shape[side] > 2 else "replicate"
        flat = functional.conv2d(functional.pad(flat, pad, mode=mode), kernel.reshape(shape))
    return flat.reshape(x.shape)
