"""A part of the denoising by training time, as the pipelines of Stable Diffusion XL share it out among two models (eDiff-I,
arXiv:2211.01324): the first denoises to a level, and the second goes on from there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from research.checks import check_number
from research.errors import ConfigError
from research.sampling.interfaces import Solver
from research.sampling.timeline import Timeline


def checked_part(key: str, value: Any) -> float | None:
    """A part of training time, between 0 and 1 without the ends; None for the whole.

    Raises:
        ConfigError: it is none.
    """
    return None if value is None else check_number(key, value, above=0, below=1, otherwise="null")


def span(solver: Solver, steps: int, device: torch.device, start: float | None, end: float | None) -> Timeline:
    """The steps of a full schedule that begin at timesteps from ``(1 - start) T``, left out, to ``(1 - end) T``, kept, of the T
    that the model was trained with: what ends at a part and what starts there make up the whole. With parity evaluations are
    counted and not steps, as the pipelines do; of solvers of two evaluations a step both halves then have the one between.

    Raises:
        ConfigError: no step is left.
    """
    trained = int(getattr(getattr(getattr(solver, "scheduler", None), "config", None), "num_train_timesteps", 1000))
    timeline = solver.timeline(steps, device=device)
    if start is not None:
        kept = _steps_below(timeline, solver, steps, round(trained - start * trained))
        # between two counts, so that no rounding tips it; flow pipelines round up
        aside = -0.5 if solver.parity and solver.kind == "flow" else 0.5
        strength = 1.0 if kept >= steps else max(kept + aside, 0.0) / steps
        timeline = solver.timeline(steps, strength=strength, device=device, by_strength=True)
    if end is not None:
        whole, timeline = timeline, _until(timeline, round(trained - end * trained), parity=solver.parity)
        if len(timeline) < len(whole):
            following = whole[len(timeline)]
            solver.end_level = (following.signal, following.noise)
    if not len(timeline):
        asked = ", ".join(f"{key}={value:g}" for key, value in (("start", start), ("end", end)) if value is not None)
        raise ConfigError(
            f"task.denoising_*: {asked} leaves none of {steps} steps; accepted are more steps, or a longer part."
        )
    return timeline


def _steps_below(timeline: Timeline, solver: Solver, steps: int, cutoff: int) -> int:
    """How many of the last steps begin below a timestep."""
    if not solver.parity:
        return sum(time < cutoff for time in _first_times(timeline).values())
    order = int(getattr(solver, "order", 1))
    left = sum(stage.time < cutoff for stage in timeline.stages)
    left += order == 2 and left % 2 == 0  # the pipelines do not cut a step in two
    return steps - (len(timeline) - left) // order


def _until(timeline: Timeline, cutoff: int, *, parity: bool) -> Timeline:
    """The stages at timesteps from ``cutoff`` on, without parity of whole steps."""
    if parity:
        stages = timeline.stages[: sum(stage.time >= cutoff for stage in timeline.stages)]
    else:
        first = _first_times(timeline)
        stages = tuple(stage for stage in timeline.stages if first[stage.step] >= cutoff)
    return dataclasses.replace(timeline, stages=stages)


def _first_times(timeline: Timeline) -> dict[int, float]:
    """The timestep at which each step begins."""
    found: dict[int, float] = {}
    for stage in timeline.stages:
        found.setdefault(stage.step, stage.time)
    return found
