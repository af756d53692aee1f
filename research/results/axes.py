"""Which settings a sweep varies, found by comparing the composed configs of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.labels import axis_label, is_number

# settings that decide neither the images nor their scores
_IGNORED = ("output_dir", "sweep_name", "on_failure", "resume", "runtime", "tracker", "hydra", "experiment", "metrics")
# the order in which axes are shown; the others follow by name
PREFERRED = (
    "model.path",
    "task._target_",
    "scheduler.name",
    "sigmas.name",
    "sampler.name",
    "guidance._target_",
    "guidance.scale",
    "steps",
)


@dataclass(frozen=True)
class Axis:
    """A setting with its values in the order they are shown: numbers ascending, others as they first ran."""

    key: str
    values: tuple[Any, ...]

    @property
    def label(self) -> str:
        return axis_label(self.key)

    @property
    def numeric(self) -> bool:
        return all(is_number(v) for v in self.values if v is not None)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"guidance.scale": 3.0, ...}``; lists become tuples, class paths their last name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        elif name == "_target_" and isinstance(value, str):
            flat[key] = value.rsplit(".", 1)[-1]
        else:
            flat[key] = _hashable(value)
    return flat


def find_axes(settings: Sequence[Mapping[str, Any]]) -> list[Axis]:
    """The settings that differ between jobs.

    Of one group, a setting that follows from another is left out: a scheduler's class and options follow from its name.

    Args:
        settings: flat settings, one mapping a job, in the order the jobs ran.
    """
    keys = {key for s in settings for key in s if key.split(".")[0] not in _IGNORED}
    varied = [key for key in keys if len({s.get(key) for s in settings}) > 1]
    varied.sort(key=lambda k: (PREFERRED.index(k) if k in PREFERRED else len(PREFERRED), k))
    chosen: list[str] = []
    for key in varied:
        siblings = [c for c in chosen if c.split(".")[0] == key.split(".")[0]]
        if not any(_follows(key, other, settings) for other in siblings):
            chosen.append(key)
    chosen.sort(key=lambda k: k == "steps")  # steps run along the columns, so they come last
    return [Axis(key, _ordered([s.get(key) for s in settings])) for key in chosen]


def _follows(key: str, other: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    seen: dict[Any, Any] = {}
    return all(seen.setdefault(s.get(other), s.get(key)) == s.get(key) for s in settings)


def _ordered(values: Sequence[Any]) -> tuple[Any, ...]:
    different = list(dict.fromkeys(values))
    numbers = sorted(v for v in different if is_number(v))
    # a missing value (no guidance has no scale) comes first
    return (
        *[v for v in different if v is None],
        *numbers,
        *[v for v in different if v is not None and not is_number(v)],
    )


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _hashable(v)) for k, v in value.items())
    return value
