"""A hook that notes where the steps of a path would end, for metrics that sample a job again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from research.sampling.interfaces import Hook, Run, StepState


class CleanAt(Hook):
    """Keeps the clean latents that are predicted at the beginning of some steps."""

    order = 950

    def __init__(self, at: Sequence[int]) -> None:
        self.at = list(at)
        self._batches: list[dict[int, Tensor]] = []

    def on_start(self, run: Run) -> None:
        self._now: dict[int, Tensor] = {}

    def post_guidance(self, state: StepState) -> None:
        if state.stage.step in self.at:
            self._now.setdefault(state.stage.step, state.x0.detach().to("cpu", copy=True))

    def on_end(self, run: Run) -> None:
        self._batches.append(self._now)

    def made(self) -> list[Tensor]:
        """[N, C, h, w] each, in the order of the steps that were named."""
        return [torch.cat([batch[step] for batch in self._batches]) for step in self.at]
