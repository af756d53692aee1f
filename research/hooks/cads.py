"""CADS: conditions that begin as noise and become what they are."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from research.checks import check_number
from research.errors import ConfigError
from research.hooks.dynamic_prompt import Overlay
from research.sampling.interfaces import Condition, Hook, Run, StepState
from research.sampling.noise import HOOK

_KEY = "hooks.cads"


class CADS(Hook):
    """Condition annealing, for pictures of a prompt that differ more (Sadat et al., arXiv:2310.17347, section 4, algorithm 1).

    The prompt's embedding ``y`` becomes ``sqrt(g) y + noise_scale sqrt(1 - g) n`` with fresh noise ``n`` for each of the user's
    steps, and is given back its mean and spread to the share ``mixing`` (eq. 5 to 7). ``g`` is 1 up to the time ``tau1``, 0
    from ``tau2`` on and linear between (eq. 4), where time goes from 1 at the first of the full schedule's steps to 0 at its
    end. Pooled text is treated alike; the negative condition is left as it is. On purpose different from the authors' pseudo
    code: mean and spread are those of each image, so that an image does not depend on its batch.

    Args:
        noise_scale: from 0; the authors take 0.02 to 0.25 for texts.
        tau1, tau2: ``0 <= tau1 <= tau2``; with ``tau1=1`` it is off. The authors take 0.6 and 0.9 for texts.
        mixing: how much of mean and spread is given back, from 0 to 1.

    Raises:
        ConfigError: a number is out of range, or the task has no prompt.
    """

    requires = frozenset({"text"})
    keeps = ("_step", "_noises")

    def __init__(self, noise_scale: float = 0.1, tau1: float = 0.6, tau2: float = 0.9, mixing: float = 1.0):
        self.noise_scale = check_number(f"{_KEY}.noise_scale", noise_scale, least=0)
        self.tau1 = check_number(f"{_KEY}.tau1", tau1, least=0)
        self.tau2 = check_number(f"{_KEY}.tau2", tau2, least=self.tau1)
        self.mixing = check_number(f"{_KEY}.mixing", mixing, least=0, most=1)
        self._step, self._noises = -1, dict[str, Tensor]()

    def on_start(self, run: Run) -> None:
        self._step, self._noises = -1, {}

    def gamma(self, step: int, n_steps: int) -> float:
        """The share of the condition at the user's step ``step`` of ``n_steps``, counted from 0: eq. 4."""
        time = 1.0 - step / n_steps
        if time <= self.tau1:
            return 1.0
        return 0.0 if time >= self.tau2 else (self.tau2 - time) / (self.tau2 - self.tau1)

    def pre_step(self, state: StepState) -> None:
        share = self.gamma(state.stage.step, state.stage.n_steps)
        if share < 1:
            given = state.conditions
            made: list[Condition] = []  # once a stage, as guidances hold it against itself

            def annealed() -> Condition:
                if not made:
                    made.append(self._annealed(state, given["cond"], share))
                return made[0]

            state.conditions = Overlay(given, {"cond": annealed})

    def _annealed(self, state: StepState, condition: Condition, share: float) -> Condition:
        if condition.embeds is None:
            raise ConfigError(f"{_KEY}: anneals the embedding of a prompt; found a task without one.")
        if self._step != state.stage.step:
            self._step, self._noises = state.stage.step, {}
        noised = partial(self._noised, state=state, share=share)
        pooled = None if condition.pooled is None else noised("pooled", condition.pooled)
        return replace(condition, embeds=noised("embeds", condition.embeds), pooled=pooled)

    def _noised(self, name: str, y: Tensor, *, state: StepState, share: float) -> Tensor:
        wide = y.float()
        over = tuple(range(1, y.ndim))
        if name not in self._noises:
            self._noises[name] = state.run.noise.draw(f"{HOOK}/cads_{name}", y.shape[1:], torch.float32)
        noise = self._noises[name]
        found = math.sqrt(share) * wide + self.noise_scale * math.sqrt(1 - share) * noise
        if self.mixing > 0:
            std, mean = torch.std_mean(wide, dim=over, keepdim=True)
            new_std, new_mean = torch.std_mean(found, dim=over, keepdim=True)
            own = (found - new_mean) / new_std.clamp_min(1e-12) * std + mean
            found = torch.lerp(found, own, self.mixing)
        return found.to(y.dtype)
