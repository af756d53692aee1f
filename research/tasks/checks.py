"""Checks of a task's settings by their names. They need no torch: they run for each job of a sweep before the first starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research import pictures
from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.strength import kept_steps, steps_needed

ON_NO_STEPS = ("error", "identity")


def check_settings(
    task: Mapping[str, Any], steps: int, *, parity: bool = False, flow: bool = False, told: bool = False
) -> None:
    """Check the settings of a composed task: pictures are there, numbers are in range, and a step is left to run.

    Args:
        flow, told: see `research.strength.kept_steps`.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    for key in pictures.KEYS:
        if task.get(key) is not None:
            pictures.check(f"task.{key}", task[key])
    if "background" in task:
        pictures.check_background(task["background"])
    if "strength" in task:
        check_strength(task["strength"], task.get("on_no_steps", "error"))
        check_steps(task["strength"], steps, task.get("on_no_steps", "error"), parity=parity, flow=flow, told=told)
    if "frames" in task:
        check_whole_number("task.frames", task["frames"], least=2)
    for key in ("start_seed", "end_seed"):
        if key in task:
            check_whole_number(f"task.{key}", task[key])


def check_strength(strength: Any, on_no_steps: Any) -> float:
    """The strength as a float, once it and the policy for one that keeps no step are checked.

    Raises:
        ConfigError: strength is no number from 0 to 1, or the policy is unknown.
    """
    strength = check_number("task.strength", strength, least=0, most=1)
    check_choice("task.on_no_steps", on_no_steps, ON_NO_STEPS)
    return strength


def check_steps(
    strength: float, steps: int, on_no_steps: str, *, parity: bool = False, flow: bool = False, told: bool = False
) -> None:
    """Check that a strength leaves a step to run. Strength 0 asks for none and is no mistake; with parity pipelines fail on it.

    Args:
        flow, told: see `research.strength.kept_steps`.

    Raises:
        ConfigError: it leaves none, and the policy is "error".
    """
    if kept_steps(steps, strength, parity=parity, flow=flow, told=told) or (on_no_steps == "identity" and not parity):
        return
    if strength == 0:
        if parity:
            raise ConfigError(
                "task.strength: found 0, with which the diffusers pipeline fails; accepted with parity is more."
            )
        return
    unless = "" if parity else "; task.on_no_steps=identity gives the picture back as it is"
    raise ConfigError(
        f"task.strength: {strength:g} of {steps} steps is no whole step; accepted is a strength from {1 / steps:.4g}, or from "
        f"{steps_needed(strength)} steps{unless}."
    )
