"""Smoothed-energy guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from research.checks import check_number
from research.errors import SamplingError
from research.guidance.blur import gaussian_blur, map_size
from research.guidance.perturbed import LayerPatch, PatchedLayers
from research.guidance.projections import changed_output
from research.sampling.interfaces import Guidance, Patch, StepState


class SEG(PatchedLayers):
    """Smoothed-energy guidance (Hong, arXiv:2408.00760): ``g + scale * (c - p)``.

    ``p`` is the conditional prediction with the queries of some self-attention layers blurred over their map, which blurs the
    attention weights and flattens the energy that attention descends. ``g`` is what the base gives, ``c`` without one.

    Args:
        scale: strength of the push, from 0; the paper keeps it at 3 and varies the blur.
        layers: self-attention layers, by pattern; the paper takes the middle block.
        blur_sigma: of the Gaussian, in places of the layer's map, above 0; infinite replaces every query by the mean one. The
            kernel has 6 sigma + 1 places and no more than the map.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: the blur is no number above 0; see also `PatchedLayers`.
    """

    kind = "attention-map"
    why = "blurs queries over the map of self-attention, which linear attention and attention beside a text have not"
    branch = "smoothed"

    def __init__(
        self,
        scale: float = 3.0,
        layers: str | Sequence[str] = "mid",
        blur_sigma: float = math.inf,
        base: Guidance | None = None,
    ):
        super().__init__(scale, layers, base)
        self.blur_sigma = checked_sigma(blur_sigma)

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def patch(self, state: StepState) -> Patch:
        height, width = state.x_before.shape[-2:]
        return BlurredQueries(self.chosen, self.blur_sigma, (height, width))


class BlurredQueries(LayerPatch):
    """Self-attention with its queries blurred over the map; the rest is the layer's own, whatever computes its attention.

    Args:
        latents: height and width of the latents, from which the shape of a layer's map is told.
    """

    def __init__(self, layers: Sequence[str], sigma: float, latents: tuple[int, int]):
        super().__init__(layers)
        self.sigma, self.latents = sigma, latents

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Tensor:
        size = (hidden.shape[2], hidden.shape[3]) if hidden.ndim == 4 else map_size(hidden.shape[1], self.latents)
        if size is None:
            raise SamplingError(
                f"guidance.layers: a layer has {hidden.shape[1]} places, which are no map of latents of "
                f"{self.latents[0]} x {self.latents[1]}; accepted are layers on maps."
            )

        def blur(queries: Tensor) -> Tensor:
            maps = queries.transpose(1, 2).unflatten(2, size)
            kernel = 0 if math.isinf(self.sigma) else 2 * (math.ceil(6 * self.sigma) // 2) + 1
            return gaussian_blur(maps, self.sigma, kernel).flatten(2).transpose(1, 2)

        with ExitStack() as undo:
            undo.enter_context(changed_output(layer.to_q, blur))
            return forward(hidden, **kwargs)


def checked_sigma(sigma: Any, key: str = "guidance.blur_sigma", *, infinite: bool = True) -> float:
    """A blur's standard deviation as a float; "inf" may be text, as YAML has no plain word for it.

    Raises:
        ConfigError: no number above 0.
    """
    value = math.inf if sigma in ("inf", "infinity") else sigma
    return check_number(key, value, above=0, infinite=infinite, otherwise="infinity (.inf)" if infinite else "")
