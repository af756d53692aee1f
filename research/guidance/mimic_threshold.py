"""Dynamic thresholding that mimics a lower guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.modifier import Modifier
from research.guidance.pairs import guided_in
from research.guidance.spaces import checked_space, needs_levels
from research.sampling.interfaces import Guidance, Guided, ModelFacts, Solver, StepState
from research.sampling.prediction import Prediction

_KEY = "guidance.modifiers.mimic_threshold"


class MimicThreshold(Modifier):
    """Gives the guided prediction the range that CFG of a lower scale would have (mcmonkey, sd-dynamic-thresholding, 2023).

    Of the guided prediction ``g`` and of ``m = u + mimic_scale * (c - u)`` the means are taken off, ``g`` is cut to the greater
    of the two ranges and shrunk to that of ``m``, and gets its mean back. A range is the greatest magnitude (``m``) or the
    quantile ``percentile`` of them (``g``), or with ``measure="std"`` the standard deviation, without a cut. It has no paper;
    the formula is that of the authors' code (`dynthres_core.py`), whose schedules are `Schedule` here. On purpose different:
    over all channels ranges are those of each image, where that code has one for the batch.

    Args:
        guidance: what is changed, with an unconditional prediction: for example ``CFG(12)``.
        mimic_scale: the scale whose range is wanted.
        percentile: above 0, to 1.
        per_channel: means and ranges of each channel; False: means of each channel, ranges of the image.
        measure: "max" (AD in the authors' code) or "std".
        start: "mean" takes the mean off, "zero" scales as it is.
        phi: share of the result, from 0 (off) to 1.
        space: where: "x0" as in the web UI, "epsilon", "v", "flow", or "prediction".

    Raises:
        ConfigError: a setting is not one of the accepted; on `check`, that the guidance has no unconditional prediction.
    """

    def __init__(
        self,
        guidance: Guidance,
        mimic_scale: float = 7.0,
        percentile: float = 1.0,
        per_channel: bool = True,
        measure: str = "max",
        start: str = "mean",
        phi: float = 1.0,
        space: str = "x0",
    ):
        super().__init__(guidance)
        self.mimic_scale = check_number(f"{_KEY}.mimic_scale", mimic_scale)
        self.percentile = check_number(f"{_KEY}.percentile", percentile, above=0, most=1)
        self.per_channel = check_choice(f"{_KEY}.per_channel", per_channel, (True, False))
        self.measure = check_choice(f"{_KEY}.measure", measure, ("max", "std"))
        self.startpoint = check_choice(f"{_KEY}.start", start, ("mean", "zero"))
        self.phi = check_number(f"{_KEY}.phi", phi, least=0, most=1)
        self.space = checked_space(space, f"{_KEY}.space")
        self.own_requires = needs_levels(self.space)

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        if "uncond" not in self.guidance.requires and self.guidance.scale != self.neutral:
            raise ConfigError(
                f"{_KEY}: mimics a scale of CFG; {type(self.guidance.plug).__name__} asks for no unconditional prediction."
            )

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        pair = {name: predictions[name] for name in ("uncond", "cond") if name in predictions}
        if len(pair) < 2 or self.phi == 0 or self.stands_still(state):
            return guided
        found = guided_in(state, {**pair, "guided": guided.prediction}, self.space, self._made)
        return replace(guided, prediction=found.prediction)

    def _made(self, values: dict[str, Tensor]) -> Tensor:
        g, u, c = (values[name].flatten(2) for name in ("guided", "uncond", "cond"))
        mimic = u + self.mimic_scale * (c - u)
        mean = g.mean(2, keepdim=True)
        centred, wanted = g - mean, mimic - mimic.mean(2, keepdim=True)
        own = self._range(centred, self.percentile)
        aim = self._range(wanted, 1.0)
        if self.startpoint == "zero":
            found = g * (aim / own)
        elif self.measure == "std":
            found = centred * (aim / own) + mean
        else:
            limit = torch.maximum(own, aim)
            found = torch.minimum(torch.maximum(centred, -limit), limit) * (aim / limit) + mean
        return torch.lerp(g, found, self.phi).reshape(values["guided"].shape)

    def _range(self, x: Tensor, percentile: float) -> Tensor:
        """The range of centred values [N, C, places]: [N, C, 1], or [N, 1, 1] over channels."""
        flat = x if self.per_channel else x.flatten(1)[:, None]
        if self.measure == "std":
            found = flat.std(2, keepdim=True)
        elif percentile == 1:
            found = flat.abs().amax(2, keepdim=True)
        else:
            found = torch.quantile(flat.abs().float(), percentile, dim=2, keepdim=True).to(x.dtype)
        return found.clamp_min(1e-12)
