"""Tangential damping of the unconditional prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from research.guidance.pairs import Pair, inner
from research.sampling.interfaces import StepState


class TCFG(Pair):
    """Tangential damping CFG (Kwon et al., arXiv:2503.18137, section 4): ``u' + scale * (c - u')``.

    ``u'`` is the part of ``u`` along the first right singular vector of the two scores ``[c; u]``, image by image; the
    part along the second, which they do not share, is dropped. Where ``c`` and ``u`` are equally long, ``u' = (c + u) /
    2``, and so it is close to CFG with the scale ``(1 + scale) / 2``: it takes higher scales.

    Args:
        scale: 1 is no guidance and costs one evaluation a stage, other values two.
        space: where the singular vectors are taken: "epsilon" is that of the scores, as in the paper; or "x0", "v",
            "flow", or "prediction" for whatever the model predicts. At latents of noise alone, where the two scores are
            equal whatever the model says, it is what the model predicts.

    Raises:
        ConfigError: the scale is not a finite number, or the space is unknown.
    """

    def __init__(self, scale: float = 7.5, space: str = "epsilon"):
        super().__init__(scale, space)

    def vectorises(self) -> bool:
        return self.scale != 1

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        damped = along_shared(u, c)
        return damped + state.scale_of(self) * (c - damped)


def along_shared(u: Tensor, c: Tensor) -> Tensor:
    """The part of ``u`` along the first right singular vector of the two rows ``[c; u]``, image by image, [N, ...].

    The singular vector is ``cos(f) c + sin(f) u``, up to its length, with the angle ``f`` of the first eigenvector of the
    rows' 2 x 2 Gram matrix. It has a closed form, which unlike a solver takes NaN and leaves it to be found where it is
    looked for.
    """
    cc, cu, uu = inner(c, c), inner(c, u), inner(u, u)
    angle = 0.5 * torch.atan2(2 * cu, cc - uu)
    cos, sin = torch.cos(angle), torch.sin(angle)
    square = cos * cos * cc + 2 * cos * sin * cu + sin * sin * uu  # of the vector's length
    amount = torch.where(square == 0, square, (cos * cu + sin * uu) / square)
    return (amount * cos).to(u.dtype) * c + (amount * sin).to(u.dtype) * u
