"""CFG++: interpolation of predictions, renoised along the unconditional one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from research.checks import check_number
from research.errors import ConfigError
from research.guidance.pairs import extrapolated, names_at
from research.sampling.interfaces import Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction


class CFGPlusPlus(Guidance):
    """CFG++ (Chung et al., arXiv:2406.08070, algorithm 2): the clean estimate ``u0 + scale * (c0 - u0)``, renoised with
    ``u``'s noise.

    The step goes from an interpolated clean estimate along the unconditional noise, and so stays where the model has seen
    data. The scheduler keeps its name: DDIM, DDPM, Euler, Euler ancestral, LCM and TCD, whose steps use one evaluation and no
    memory; and ``dpmpp_2m`` and ``dpmpp_2s_a``, whose CFG++ kinds the authors publish: all but the leading clean estimate is
    unconditional (`Update.lead`). Others (Heun, UniPC, PNDM, SDE kinds, ...) are refused by name. On the way to the noise
    of an inversion the roles are swapped, as in the paper's inversion: `RoundTripSolver` does it.

    Args:
        scale: from 0, the unconditional prediction for one evaluation a stage, to 1, the conditional clean estimate
            renoised with the unconditional noise. The paper's counterpart of a CFG scale of 7.5 is 0.6. No value is the
            conditional prediction alone: use `NoGuidance` for that.

    Raises:
        ConfigError: the scale is not a number in [0, 1].
    """

    neutral = None
    scale_range = (0.0, 1.0)
    requires = frozenset({"uncond", "renoise"})

    def __init__(self, scale: float = 0.6):
        self.scale = check_number("guidance.scale", scale)
        if not 0 <= self.scale <= 1:
            raise ConfigError(
                f"guidance.scale: found {scale!r}; CFG++ accepts a number from 0 to 1 (0.6 is like 7.5 of CFG)."
            )

    def vectorises(self) -> bool:
        return self.scale != 0

    def branches(self, state: StepState) -> Sequence[Branch]:
        return [Branch(name, state.conditions[name]) for name in names_at(state.scale_of(self))]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        u, c = predictions["uncond"], predictions["cond"]
        # linear, so what the model predicts is interpolated and not the clean estimates
        value = extrapolated(u.value, c.value, state.scale_of(self), parity=state.run.parity)
        return Guided(Prediction(value, u.kind), renoise=u)
