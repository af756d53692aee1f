"""Noise predictions scaled by a number that depends on the noise level alone: epsilon scaling and temporal score rescaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from research.checks import check_number
from research.guidance.modifier import Modifier
from research.guidance.pairs import guided_in
from research.sampling.interfaces import Guidance, Guided, StepState
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage


class NoiseScaling(Modifier):
    """Multiplies the noise of the guided prediction by `factor`, whatever the model predicts. Latents that are noise alone (the
    first stage of flow models) are left as they are, as nothing else can be said of them."""

    own_requires = frozenset({"noise-levels"})

    def factor(self, stage: Stage) -> float:
        """What noise is multiplied by at a stage."""
        raise NotImplementedError

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        factor = self.factor(state.stage)
        if factor == 1 or state.stage.signal == 0 or self.stands_still(state):
            return guided
        scaled = guided_in(state, {"g": guided.prediction}, "epsilon", lambda v: factor * v["g"])
        return replace(guided, prediction=scaled.prediction)


class EpsilonScaling(NoiseScaling):
    """Epsilon scaling (Ning et al., arXiv:2308.15321, section 5): the noise ``e`` becomes ``e / l``, against exposure bias.

    ``l`` is near 1 and a straight line over the user's steps (eq. 9), mostly a constant, as in the authors' code.

    Args:
        guidance: whose prediction is scaled.
        scaling: ``l`` at the first step, above 0; 1 leaves it. The authors have 1.0005 to 1.02, less for more steps.
        end: ``l`` at the last step; by default the same.

    Raises:
        ConfigError: a number is not above 0.
    """

    def __init__(self, guidance: Guidance, scaling: float = 1.005, end: float | None = None):
        super().__init__(guidance)
        key = "guidance.modifiers.epsilon_scaling"
        self.scaling = check_number(f"{key}.scaling", scaling, above=0)
        self.end = None if end is None else check_number(f"{key}.end", end, above=0)

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def factor(self, stage: Stage) -> float:
        last = self.scaling if self.end is None else self.end
        part = stage.step / (stage.n_steps - 1) if stage.n_steps > 1 else 0.0
        return 1 / (self.scaling + (last - self.scaling) * part)


class TSR(NoiseScaling):
    """Temporal score rescaling (Xu et al., arXiv:2510.01184, eq. 8 and 10): samples of a sharper or a flatter distribution.

    The noise becomes ``r e`` with ``r = (n s^2 + 1) / (n s^2 / k + 1)``, ``n`` the signal-to-noise ratio ``signal^2 /
    noise^2``. For data that are Gaussian with the variance ``s^2`` it samples the variance ``s^2 / k`` exactly; for others it
    does so about each mode.

    Args:
        guidance: whose prediction is rescaled.
        k: inverse temperature, above 0: 1 leaves it, more is sharper, less is more diverse.
        sigma: ``s``, the spread of data about their modes, above 0.

    Raises:
        ConfigError: a number is not above 0.
    """

    def __init__(self, guidance: Guidance, k: float = 0.95, sigma: float = 1.0):
        super().__init__(guidance)
        self.k = check_number("guidance.modifiers.tsr.k", k, above=0)
        self.sigma = check_number("guidance.modifiers.tsr.sigma", sigma, above=0)

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def factor(self, stage: Stage) -> float:
        data, noise = (stage.signal * self.sigma) ** 2, stage.noise**2
        return (data + noise) / (data / self.k + noise)
