"""The linter of schedulers: what is doubtful about a composed one, found by driving it and not by its name alone.

A scheduler is walked through its steps with the predictions that a perfect model would make of a picture it knows; where it then
lands says whether it goes to the levels that its next timesteps stand for. Nothing is read but configs, so it takes milliseconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from research.errors import ConfigError
from research.solvers.lint import config_rules, level_rules
from research.solvers.lint.case import Case, Finding
from research.solvers.quiet import quiet
from research.solvers.upstream_levels import Told

Rule = Callable[[Case], Iterable[Finding]]

RULES: tuple[Rule, ...] = (*config_rules.RULES, *level_rules.RULES)
_SEVERITY = {"error": 0, "warning": 1, "note": 2}


def lint(
    scheduler: Any,
    options: Mapping[str, Any] | None,
    base_config: Mapping[str, Any],
    steps: int,
    strength: float = 1.0,
    *,
    parity: bool = False,
    latent: bool | None = None,
    notes: bool = True,
    sigmas: Any = None,
    schedule: Told | None = None,
) -> list[Finding]:
    """What is doubtful about a scheduler with these settings, the worst first.

    Args:
        scheduler, options, base_config: as for `SolverFactory`.
        steps: user's steps of the full schedule.
        strength: which part of it is run, in [0, 1].
        parity: judge the diffusers scheduler as its pipeline uses it, and not what this project makes of it. Faults of the
            former that are corrected here are notes otherwise.
        latent: whether the model works on latents, which must not be clipped; None takes it from the betas.
        notes: also look for what is merely good to know.
        sigmas, schedule: the grid of noise levels and what a model has a scheduler told, as for `SolverFactory`.

    Returns:
        Findings, none where nothing is doubtful. "error" is what cannot work, "warning" what does something else than was
        probably meant, "note" what is good to know.
    """
    # a scheduler that takes no generator may draw from the global one, which is the user's
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), quiet():
        warnings.simplefilter("ignore")
        try:
            case = Case(
                scheduler,
                options or {},
                base_config,
                steps,
                strength,
                parity=parity,
                latent=latent,
                notes=notes,
                sigmas=sigmas,
                schedule=schedule,
            )
        except ConfigError as error:
            return [Finding("error", "cannot-be-built", str(error))]
        found = [finding for rule in RULES for finding in rule(case)]
    if not notes:
        found = [finding for finding in found if finding.severity != "note"]
    return sorted(dict.fromkeys(found), key=lambda finding: _SEVERITY[finding.severity])
