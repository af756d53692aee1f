"""What a metric is to the runner: a metric of one's own has these members, and a YAML names it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from research.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from research.metrics.kept import KeptFeatures


@dataclass(frozen=True)
class MetricResult:
    """Numbers, and what they were computed with.

    Attributes:
        values: flat, ready for a table; every value is finite.
        info: plain JSON values; ``warnings`` is a list of lines for the user, empty if all is well. ``per_image`` has one number
            an image in their order, where the metric's value is the mean of such. ``comparable`` is a short hash: numbers
            of a metric may be ranked together only where it is equal, see `comparable`.
        features: what the images were turned into, for a set metric; see `research.metrics.kept`.
    """

    values: dict[str, float]
    info: dict[str, Any] = field(default_factory=dict)
    features: KeptFeatures | None = None


class Metric(Protocol):
    """Scores the images of one job. Constructors are cheap; the first `compute` loads what is heavy.

    Two members are optional. ``needs_job = True``: `compute` is also given ``job``, a `research.metrics.job.ScoredJob`, which has
    the input picture, the mask, and a way to sample again. ``check_job(config)``: refuses a composed job that it cannot score,
    before anything is loaded. A metric that is a sum over images may have ``add_up``, ``parts`` and ``conclude``, see `FID`.
    """

    name: str

    def check(self, *, n_images: int) -> None:
        """Refuses a job that cannot be scored, before any weights are loaded.

        Raises:
            ConfigError: one line that names the key, what was found and what is accepted.
        """
        ...

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device
    ) -> MetricResult:
        """Scores images, `prompts` holding one for each. Nothing of earlier calls enters the result."""
        ...


def check_whole(key: str, value: object, *, least: int = 1) -> None:
    """Raises ConfigError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key}: found {value!r}; accepted is a whole number of at least {least}.")


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raises ConfigError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{key}: found {value!r}.{nearest(str(value), choices)} Accepted: {', '.join(choices)}.")


def check_name(key: str, value: object) -> None:
    """Raises ConfigError unless `value` can name a column: letters, digits and underscores, a letter first."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", value):
        raise ConfigError(
            f"{key}: found {value!r}; accepted is a name of small letters, digits and underscores, such as 'fd_dinov2'."
        )


def check_count(key: str, n_images: int, least: int = 1) -> None:
    """Raises ConfigError for fewer images than a metric can work with."""
    if n_images < least:
        raise ConfigError(f"{key}: found {n_images} image{'s' * (n_images != 1)}; accepted is at least {least}.")


def comparable(*what: Any) -> str:
    """A short hash of what two numbers must have in common to be ranked together: 16 hex digits of their JSON's SHA-256.

    Names of models are left out, as a copy may lie elsewhere under another name: their weights' hash is what counts.
    """
    told = json.dumps([_unnamed(part) for part in what], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _unnamed(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "name"} if isinstance(part, Mapping) else part


def mean_over_images(name: str, scores: Sequence[float], info: dict[str, Any]) -> MetricResult:
    """The result of a metric that is a mean over images: ``name``, its standard error ``name_se`` for two images and more, and
    the scores themselves in the record, to six digits."""
    values = {name: statistics.fmean(scores)}
    if len(scores) > 1:
        values[f"{name}_se"] = statistics.stdev(scores) / math.sqrt(len(scores))
    return MetricResult(values, {**info, "n_images": len(scores), "per_image": [float(f"{s:.6g}") for s in scores]})


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions; those that are missing are left out."""
    return {name: found for name in names if (found := _version(name)) is not None}
