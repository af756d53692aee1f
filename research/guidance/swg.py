"""Sliding window guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.perturbed import Perturbed, free_name, plain_branch, pushed
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, ModelFacts, Solver, StepState
from research.sampling.prediction import Prediction


class SWG(Perturbed):
    """Sliding window guidance (Kaiser et al., arXiv:2411.10257, section 4): ``g + scale * m * (c - p)``.

    ``p`` is made of the conditional predictions for ``windows * windows`` square cuts of the latents that overlap, averaged
    where they do: the network sees no further than a window. With ``masked`` the push is where at least two windows are (``m``
    is 1 there and 0 elsewhere), as the authors' code has it by default; else everywhere. ``g`` is what the base gives, ``c``
    without one. No prompt and no change of the network; each window counts as an evaluation, of a smaller picture.

    Args:
        scale: strength of the push, from 0, which is the base alone.
        window: side of a window as a part of the latents' side, above 0 and below 1, rounded up to what the network takes.
        windows: how many there are along a side, 2, 3 or 5.
        masked: push only where windows overlap.
        base: for example ``CFG(5)``; by default none.

    Raises:
        ConfigError: a setting is not one of the accepted; at a run's start, that there is no such window of its latents.
    """

    branch = "window"

    def __init__(
        self,
        scale: float = 0.2,
        window: float = 0.625,
        windows: int = 2,
        masked: bool = True,
        base: Guidance | None = None,
    ):
        super().__init__(scale, base)
        self.window = check_number("guidance.window", window, above=0, below=1)
        self.windows = check_choice("guidance.windows", windows, (2, 3, 5))
        self.masked = check_choice("guidance.masked", masked, (True, False))

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        if not model.network_config:
            raise ConfigError(
                "guidance: SWG evaluates cuts of the latents, which a network has to take at other sizes; "
                f"{model.name} says nothing of its network."
            )
        if self.scale:
            self.sides(model.latent_shape(None, None)[1:], model)

    def sides(self, size: Sequence[int], model: ModelFacts) -> tuple[int, ...]:
        """Height and width of a window of latents of this height and width.

        Raises:
            ConfigError: no smaller one is of a size that the network takes.
        """
        step = grid_of(model)
        found = tuple(math.ceil(self.window * side / step) * step for side in size)
        good = all(mine < side for mine, side in zip(found, size, strict=True))
        if not good or (self.masked and any(self._apart(*pair) >= pair[0] for pair in zip(found, size, strict=True))):
            raise ConfigError(
                f"guidance.window: found {self.window:g}, which of latents of {size[0]} x {size[1]} is {found[0]} x {found[1]}, "
                f"as sides are multiples of {step}; accepted is a window "
                f"smaller than the latents{' that overlaps with the next' if self.masked else ''}."
            )
        return found

    def _apart(self, mine: int, side: int) -> int:
        """How far one window is from the next."""
        return (side - mine) // (self.windows - 1)

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def start(self, run: Batch) -> None:
        super().start(run)
        self._model = run.model

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = list(self.guidance.branches(state))
        self._plain: Branch | None = None
        if state.scale_of(self) != self.neutral and not self.stands_still(state):
            self._plain = plain_branch(asked)
            self._name = free_name(self.branch, [branch.name for branch in asked])
        return asked

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self._plain is None:
            return guided
        plain = predictions[self._plain.name]
        windowed = self._windowed(state, self._plain, plain)
        return pushed(state, guided, state.scale_of(self), plain, windowed)

    def _windowed(self, state: StepState, plain: Branch, whole: Prediction) -> Prediction:
        """The windows' predictions, put together [N, C, h, w]."""
        x = state.x_before.detach()
        sides = self.sides(x.shape[-2:], self._model)
        places = [
            [k * self._apart(mine, side) for k in range(self.windows)]
            for side, mine in zip(x.shape[-2:], sides, strict=True)
        ]
        total, count = (
            torch.zeros_like(whole.value, dtype=torch.float32),
            x.new_zeros(x.shape[-2:], dtype=torch.float32),
        )
        with torch.no_grad():
            for top in places[0]:
                for left in places[1]:
                    area = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
                    channels = plain.condition.channels
                    told = plain.condition if channels is None else replace(plain.condition, channels=channels[area])
                    branch = replace(plain, name=self._name, condition=told)
                    total[area] += state.predict([branch], x=x[area])[self._name].value.float()
                    count[area] += 1
        # beyond the last window, where sides do not divide, nothing is pushed
        least = 2 if self.masked else 1
        value = torch.where(count >= least, total / count.clamp(min=1), whole.value.detach().float())
        return Prediction(value.to(whole.value.dtype), whole.kind)


def grid_of(model: ModelFacts) -> int:
    """What the sides of latents are multiples of, for a model's network: the cells of a patch, and of a UNet's deepest map."""
    halved = len(model.network_config.get("down_block_types") or (1,)) - 1
    patch = model.network_config.get("patch_size") or 1
    return max(model.size_multiple // model.vae_factor, patch if isinstance(patch, int) else 1, 2**halved)
