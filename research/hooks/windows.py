"""Parts of a run, counted in the user's steps: which of them a hook acts in."""

from __future__ import annotations

from typing import Any

from research.checks import check_fractions
from research.sampling.interfaces import Batch
from research.sampling.timeline import Stage


class Window:
    """A part of the user's steps: step ``k`` of ``n``, counted from 0, is in it if ``lo <= k / n < hi``.

    Args:
        key: how messages call it.
        steps: ``(lo, hi)``, fractions from 0 to 1; equal ones are no step at all.

    Raises:
        ConfigError: not two numbers, or out of order or range.
    """

    def __init__(self, key: str, steps: Any = (0.0, 1.0)):
        self.key = key
        self.low, self.high = check_fractions(key, steps)

    def __contains__(self, stage: Stage) -> bool:
        return self.low <= stage.step / stage.n_steps < self.high

    def warn_if_empty(self, run: Batch) -> None:
        """Say so if no step of the run lies in a window that was meant to have some."""
        if self.low < self.high and not any(stage in self for stage in run.timeline):
            run.warn(f"{self.key}: no step of this run lies in [{self.low:g}, {self.high:g}); the hook did nothing.")


def first_of_step(run: Batch, stage: Stage) -> bool:
    """Whether a stage is the first evaluation of its step. Second-order schedulers save the latents there and go on from them."""
    return stage.index == 0 or run.timeline[stage.index - 1].last_of_step
