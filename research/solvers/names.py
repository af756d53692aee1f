"""Short names of schedulers. The YAML files of ``conf/scheduler`` are the one place where they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from research.errors import ConfigError, nearest
from research.package import config_dir

OF_MODEL = "model"  # in the place of a class: that of the model's own scheduler


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler as configured: its class in diffusers (or a dotted path), and the options given to it."""

    name: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@cache
def _known() -> dict[str, SchedulerSpec]:
    specs = {}
    for file in sorted(Path(config_dir(), "scheduler").glob("*.yaml")):
        entry = yaml.safe_load(file.read_text(encoding="utf-8"))
        if entry["class_name"] != "???":
            specs[file.stem] = SchedulerSpec(file.stem, entry["class_name"], entry.get("options") or {})
    return specs


def scheduler_names() -> list[str]:
    """The short names, sorted."""
    return sorted(_known())


def resolve(name: str, options: Mapping[str, Any] | None = None) -> SchedulerSpec:
    """The spec of a short name or of a class name, with ``options`` laid over the name's own.

    A name that is no short name is taken as a class of diffusers, or as a dotted path to a class of one's own; whether
    it exists is seen when it is built.

    Raises:
        ConfigError: the name is neither a short name nor like the name of a class.
    """
    options = dict(options or {})
    if name in _known():
        spec = _known()[name]
        return SchedulerSpec(name, spec.class_name, {**spec.options, **options})
    if not isinstance(name, str) or not (name.endswith("Scheduler") or "." in name):
        raise ConfigError(
            f"scheduler: unknown name {name!r}.{nearest(str(name), scheduler_names())} Accepted: "
            f"{', '.join(scheduler_names())}, or the name of a diffusers class such as 'DDIMScheduler'."
        )
    return SchedulerSpec(name, name, options)
