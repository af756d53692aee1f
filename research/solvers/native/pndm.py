"""PNDM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan, along

# Adams-Bashforth on an even grid (arXiv:2202.09778, eq. 12 and table 1)
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PNDM(LinearSolver):
    """Pseudo numerical methods (arXiv:2202.09778): DDIM's transfer (eq. 11) along a combination of predicted noises with the
    weights of a linear multistep method, as if levels were evenly spaced.

    Args:
        runge_kutta: begin with three steps of the pseudo Runge-Kutta method (four evaluations each, section 3.4), where at least
            four steps are taken; else with one step of Heun's kind (two evaluations). Its midpoints are halfway, rounded down to
            a whole timestep where both ends are whole. Diffusers' class asks the model there too, but takes latents of the first
            of the two to the timestep above, where a step is an odd number of timesteps.
        clip: of data predictions, see `LinearSolver`.
    """

    runge_kutta: bool = False
    clip: float | None = None
    levels_like = "PNDMScheduler"

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages: list[StagePlan] = []
        kept: list[int] = []  # the evaluations whose predictions the multistep method uses
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            here = len(stages)
            kept.append(here)
            if self.runge_kutta and levels.steps >= 4 and i < 3:
                middle = _halfway(levels, start, end)
                stages += [
                    StagePlan(start, along(start, middle, {0: 1.0}), i),
                    StagePlan(middle, along(start, middle, {0: 1.0}, back=1), i),
                    StagePlan(middle, along(start, end, {0: 1.0}, back=2), i),
                    StagePlan(end, along(start, end, {3: 1 / 6, 2: 2 / 6, 1: 2 / 6, 0: 1 / 6}, back=3), i),
                ]
            elif i == 0 and levels.steps > 1:
                stages += [
                    StagePlan(start, along(start, end, {0: 1.0}), i),
                    StagePlan(end, along(start, end, {1: 0.5, 0: 0.5}, back=1), i),
                ]
            else:
                weights = ADAMS_BASHFORTH[min(len(kept), 4) - 1]
                behind = {here - place: weight for place, weight in zip(reversed(kept), weights, strict=False)}
                stages.append(StagePlan(start, along(start, end, behind), i))
        return stages

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> PNDM | None:
        return None if step_options else cls(runge_kutta=not config.get("skip_prk_steps", False))


def _halfway(levels: Levels, start: Level, end: Level) -> Level:
    """The level half way in time, at a whole timestep where both ends are."""
    time = (start.time + end.time) / 2.0
    whole = start.time.is_integer() and end.time.is_integer()
    return levels.trained.at_time(float(int(time)) if whole else time)
