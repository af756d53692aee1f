"""Guidance by the run's own past, for no further evaluation: momentum guidance and history-guided sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.modifier import Modifier
from research.guidance.pairs import guided_in, inner, parallel
from research.guidance.spaces import Space, checked_space, needs_levels
from research.sampling.interfaces import Batch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction
from research.sampling.timeline import Stage


class History(Modifier):
    """Changes the guided prediction by what it was at the user's steps before; further evaluations of one step see the same past.

    At a jump back to noisier latents and at the turn of an inversion the past begins anew. Of several scales in one batch each
    image has its own.
    """

    space: Space = "x0"
    keeps = ("_past",)

    def __init__(self, guidance: Guidance):
        super().__init__(guidance)
        self._past: Tensor | None = None

    def changed(self, now: Tensor, past: Tensor, stage: Stage) -> Tensor:
        """What becomes of the guided prediction [N, C, h, w] in the method's space."""
        raise NotImplementedError

    def kept(self, now: Tensor, past: Tensor | None) -> Tensor:
        """The past with the guided prediction of a step, before it was changed."""
        raise NotImplementedError

    def start(self, run: Batch) -> None:
        super().start(run)
        self._past = None

    def forget(self) -> None:
        super().forget()
        self._past = None

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self.stands_still(state):
            return guided

        def made(values: dict[str, Tensor]) -> Tensor:
            now, past = values["g"], self._past
            if state.stage.last_of_step:
                self._past = self.kept(now, past).detach()
            return now if past is None else self.changed(now, past, state.stage)

        found = guided_in(state, {"g": guided.prediction}, self.space, made)
        return replace(guided, prediction=found.prediction)


class Momentum(History):
    """Momentum guidance (Liao et al., arXiv:2602.20360, algorithm 1): ``v + weight * (v - m)``.

    ``m`` is the average of the velocities at the steps before, ``m <- beta * m + (1 - beta) * v`` (eq. 12 and 13), which begins
    as the first one, so that the first step is left as it is. No official code was found.

    Args:
        guidance: whose result is changed.
        weight: from 0, which leaves it.
        beta: how slowly the average forgets, from 0 and below 1.
        normalise: give ``m`` the length of ``v``, image by image (section 8.2).
        space: "flow" for velocities as in the paper, whatever the model predicts; or "x0", "epsilon", "v", "prediction".

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self, guidance: Guidance, weight: float = 0.5, beta: float = 0.6, normalise: bool = False, space: str = "flow"
    ):
        super().__init__(guidance)
        key = "guidance.modifiers.momentum"
        self.weight = check_number(f"{key}.weight", weight, least=0)
        self.beta = check_number(f"{key}.beta", beta, least=0, below=1)
        self.normalise = check_choice(f"{key}.normalise", normalise, (True, False))
        self.space = checked_space(space, f"{key}.space")
        self.own_requires = needs_levels(self.space)

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        return super().combine(state, predictions) if self.weight else self.guidance.combine(state, predictions)

    def kept(self, now: Tensor, past: Tensor | None) -> Tensor:
        return now if past is None else self.beta * past + (1 - self.beta) * now

    def changed(self, now: Tensor, past: Tensor, stage: Stage) -> Tensor:
        if self.normalise:
            own, other = inner(now, now), inner(past, past)
            past = past * (own / other.clamp_min(1e-24)).sqrt().to(past.dtype)
        return now + self.weight * (now - past)


class HiGS(History):
    """History-guided sampling (Sadat et al., arXiv:2509.22300, algorithms 2 and 3): finer detail, most of all in few steps.

    ``D + w(t) * H(d)``: ``d = D - g`` is how the clean estimate differs from an average of those before, ``g <- alpha * D + (1
    - alpha) * g`` from 0 on; of it the part parallel to ``D`` is weighted by ``eta``, and ``H`` keeps frequencies (of the
    cosine transform) above ``cutoff``. ``w(t) = weight * sqrt((t - low) / (high - low))`` for times ``low < t <= high``, and 0
    elsewhere (eq. 6), with ``t = noise / (signal + noise)``, from 1 to 0. No official code could be had to
    compare with.

    Args:
        guidance: whose result is changed.
        weight: from 0, which leaves it; the paper has 1.75.
        alpha: weight of the newest estimate, above 0, to 1; the paper has 0.5 and 0.75.
        eta: weight of the part parallel to the estimate, from 0 to 1.
        cutoff: frequency, as a part of the highest along a side, at which half is kept; 0.05 in the paper.
        window: times ``low < high`` from 0 to 1.

    Raises:
        ConfigError: a setting is out of range.
    """

    own_requires = frozenset({"noise-levels"})

    def __init__(
        self,
        guidance: Guidance,
        weight: float = 1.75,
        alpha: float = 0.75,
        eta: float = 0.0,
        cutoff: float = 0.05,
        window: tuple[float, float] = (0.4, 1.0),
    ):
        super().__init__(guidance)
        key = "guidance.modifiers.higs"
        self.weight = check_number(f"{key}.weight", weight, least=0)
        self.alpha = check_number(f"{key}.alpha", alpha, above=0, most=1)
        self.eta = check_number(f"{key}.eta", eta, least=0, most=1)
        self.cutoff = check_number(f"{key}.cutoff", cutoff, least=0)
        low, high = window if isinstance(window, list | tuple) and len(window) == 2 else (1.0, 0.0)
        if not all(isinstance(n, int | float) for n in (low, high)) or not 0 <= low < high <= 1:
            raise ConfigError(f"{key}.window: found {window!r}; accepted are 0 <= lo < hi <= 1.")
        self.window = (float(low), float(high))

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        return super().combine(state, predictions) if self.weight else self.guidance.combine(state, predictions)

    def at(self, stage: Stage) -> float:
        """The weight at a stage."""
        low, high = self.window
        time = stage.noise / (stage.signal + stage.noise)
        return self.weight * math.sqrt((time - low) / (high - low)) if low < time <= high else 0.0

    def kept(self, now: Tensor, past: Tensor | None) -> Tensor:
        return self.alpha * now if past is None else self.alpha * now + (1 - self.alpha) * past

    def changed(self, now: Tensor, past: Tensor, stage: Stage) -> Tensor:
        if (weight := self.at(stage)) == 0:
            return now
        difference = now - past
        difference = difference - (1 - self.eta) * parallel(difference, now)
        return now + weight * high_frequencies(difference, self.cutoff)


def high_frequencies(x: Tensor, cutoff: float, sharpness: float = 50.0) -> Tensor:
    """What of maps [N, C, h, w] is above a frequency: of the orthonormal cosine transform what is at the frequency ``R``, times
    ``sigmoid(sharpness * (R - cutoff))``, and back."""
    rows, columns = (cosines(side, x) for side in x.shape[-2:])
    up, along = (torch.arange(side, device=x.device, dtype=x.dtype) / side for side in x.shape[-2:])
    share = torch.sigmoid(sharpness * ((up[:, None].square() + along.square()).sqrt() - cutoff))
    return rows.T @ ((rows @ x @ columns.T) * share) @ columns


def cosines(side: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of vectors of a length, as a matrix."""
    place = torch.arange(side, device=like.device, dtype=torch.float32)
    matrix = torch.cos(math.pi / side * (place + 0.5) * place[:, None]) * math.sqrt(2 / side)
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]]).to(like.dtype)
