"""Feedback guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import Pair
from research.sampling.interfaces import Batch, StepState
from research.sampling.prediction import Prediction, to_x0

# as in the authors' code: the greatest log posterior, the scale that is reached at t_0, and the gain at t_1
_MOST, _REFERENCE, _GAIN = 3.0, 3.0, 10.0


class FeedbackGuidance(Pair):
    """Feedback guidance (Koulischer et al., arXiv:2506.06085, eq. 11 and algorithm 1): guidance where an image needs it.

    ``u + l * (c - u)`` of clean estimates with ``l = p / (p - (1 - mix))``, where ``p`` is how probable the condition is given
    the way that the latents went, against how probable it is at all: 1 at first; after a user's step from the level ``s`` to
    ``r`` (``noise / signal``) ``log p`` loses ``temperature / (2 q) * (|x - m_c|^2 - |x - m_u|^2)`` and gains ``offset``, with
    the means ``m`` that either prediction leads to and ``q = (s^2 - r^2) r^2 / s^2``. It stays where ``l`` is at most
    ``scale``. So the scale is an image's own, and
    grows where the condition is not met yet. Evaluations beyond the first of a step take the step's scale, as in the
    authors' code.

    Args:
        scale: the greatest scale, from 1, which is no guidance and costs one evaluation a stage.
        mix: how much of the condition the model is taken to have learned (pi of the paper), above 0 and below 1.
        temperature: from 0; by default as the authors set it from ``t_1``: so that at this time the posterior can outweigh the
            offset.
        offset: added to ``log p`` after each step; below 0 the scale grows by itself. By default as the authors set it from
            ``t_0``: so that alone it would bring the scale to 3 there.
        t_0, t_1: parts of the steps, counted from their end, above 0 and below 1.

    Raises:
        ConfigError: a number is out of range.
    """

    scale_range = (1.0, math.inf)
    keeps = ("_log", "_at", "_before", "_step")

    def __init__(
        self,
        scale: float = 10.0,
        mix: float = 0.999,
        temperature: float | None = None,
        offset: float | None = None,
        t_0: float = 0.5,
        t_1: float = 0.4,
    ):
        super().__init__(check_number("guidance.scale", scale, least=1), "x0")
        self.mix = check_number("guidance.mix", mix, above=0, below=1)
        self.temperature = None if temperature is None else check_number("guidance.temperature", temperature, least=0)
        self.offset = None if offset is None else check_number("guidance.offset", offset)
        self.t_0 = check_number("guidance.t_0", t_0, above=0, below=1)
        self.t_1 = check_number("guidance.t_1", t_1, above=0, below=1)
        self._rates = (temperature or 0.0, offset or 0.0)
        self.forget()

    def start(self, run: Batch) -> None:
        self.forget()
        levels = {stage.step: stage for stage in reversed(run.timeline.stages)}  # the first of each step
        known = [levels[step].noise / max(levels[step].signal, 1e-4) for step in sorted(levels)]
        self._rates = self.rates(known)

    def rates(self, levels: Sequence[float]) -> tuple[float, float]:
        """Temperature and offset of a run whose steps begin at these noise levels."""
        steps = max(len(levels), 1)
        offset = self.offset
        if offset is None:
            offset = math.log((1 - self.mix) * _REFERENCE / (_REFERENCE - 1)) / ((1 - self.t_0) * steps)
        if self.temperature is not None:
            return self.temperature, offset
        # variances of the way from a level to the next, from the last one back
        spreads = [0.0, *((s**2 - r**2) * r**2 / s**2 for s, r in list(pairwise(levels))[::-1] if s > 0)]
        place = self.t_1 * steps
        before = min(int(place), len(spreads) - 1)
        after = min(before + 1, len(spreads) - 1)
        spread = spreads[before] + (place - int(place)) * (spreads[after] - spreads[before])
        return abs(2 * spread / _GAIN * offset), offset

    def forget(self) -> None:
        self._log: Tensor | None = None  # of the posterior [N, 1, 1, 1]
        self._at: float | None = None  # the level of the step before
        self._before: dict[str, Tensor] = {}  # latents, as signal 1 has them, and clean estimates of the step before
        self._step = -1

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        stage, greatest = state.stage, state.scale_of(self)
        if stage.signal == 0 or stage.noise == 0:  # at an end of the path a condition cannot be told from latents
            return u + (c - u)
        if stage.step != self._step:
            x = state.x_before.float() / stage.signal
            self._log = self._updated(x, stage.noise / stage.signal, greatest)
            pair = {"uncond": state.predictions["uncond"], "cond": state.predictions["cond"]}
            clean = {
                name: to_x0(Prediction(p.value.float(), p.kind), state.x_before.float(), stage).detach()
                for name, p in pair.items()
            }
            self._before, self._at, self._step = {"x": x.detach(), **clean}, stage.noise / stage.signal, stage.step
        assert self._log is not None
        p = self._log.exp()
        return u + (p / (p - (1 - self.mix))).to(u.dtype) * (c - u)

    def _updated(self, x: Tensor, level: float, greatest: float | Tensor) -> Tensor:
        """The log posterior now that the latents are ``x`` at a level."""
        log = self._log
        if log is None:
            log = x.new_zeros(len(x), *[1] * (x.ndim - 1))
        if self._at is not None and level < self._at:
            share = level**2 / self._at**2
            spread = (self._at**2 - level**2) * share
            errors = [
                (x - share * self._before["x"] - (1 - share) * self._before[name]).square().flatten(1).sum(1)
                for name in ("cond", "uncond")
            ]
            temperature, offset = self._rates
            log = log - (temperature / (2 * spread) * (errors[0] - errors[1])).reshape(log.shape) + offset
        least = math.log((1 - self.mix) * float(greatest) / (float(greatest) - 1))
        return log.clamp(min=least, max=_MOST)
