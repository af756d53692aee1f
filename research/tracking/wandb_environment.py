"""W&B's own environment variables: which of them the tracker heeds, and what is said of the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from research.errors import ConfigError

DISABLED = "disabled"
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", DISABLED: DISABLED}
_OF_RUNS = ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS")  # what the jobs say themselves


@dataclass
class Heeded:
    """The settings in force.

    Attributes:
        mode: "offline", "online", or "disabled": nothing is mirrored.
        project, entity, directory: as for `WandbTracker`.
        run_id: of the one run that the variables name.
        agent: whether an agent of W&B has named it.
        notes: what is to be told, a line each.
    """

    mode: str
    project: str
    entity: str | None
    directory: str | None
    run_id: str | None = None
    agent: bool = False
    notes: list[str] = field(default_factory=list)


def heeded(
    mode: str | None,
    project: str | None,
    entity: str | None,
    directory: str | None,
    environment: Mapping[str, str] | None = None,
) -> Heeded:
    """What a tracker's settings and the environment come to: a setting counts before the variable.

    Raises:
        ConfigError: ``WANDB_MODE`` is no mode.
    """
    given = {key: value for key, value in (os.environ if environment is None else environment).items() if value}
    asked = given.get("WANDB_MODE")
    if asked is not None and asked not in _MODES:
        raise ConfigError(f"WANDB_MODE: found {asked!r}; accepted: {', '.join(_MODES)}.")
    by_variable = _MODES[asked] if asked else None
    named = f"WANDB_MODE={asked}"
    if given.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        by_variable, named = DISABLED, f"WANDB_DISABLED={given['WANDB_DISABLED']}"
    found = Heeded(
        mode=mode or by_variable or "offline",
        project=project or given.get("WANDB_PROJECT") or "research",
        entity=entity or given.get("WANDB_ENTITY"),
        directory=directory or given.get("WANDB_DIR"),
        run_id=given.get("WANDB_RUN_ID"),
        agent="WANDB_SWEEP_ID" in given,
    )
    if mode and by_variable and by_variable != mode:
        found.notes.append(f"tracker.mode={mode} counts, and {named} does not")
    for key, value in (("project", project), ("entity", entity)):
        variable = given.get(f"WANDB_{key.upper()}")
        if value and variable and value != variable:
            found.notes.append(f"tracker.{key}={value} counts, and WANDB_{key.upper()}={variable} does not")
    if found.mode == DISABLED:
        found.notes.append(f"nothing is mirrored, as {named} says")
    elif others := [name for name in _OF_RUNS if name in given]:
        found.notes.append(
            f"{', '.join(others)} {'do' if len(others) > 1 else 'does'} not count: jobs name their own runs"
        )
    return found
