"""What a metric is to the runner: `Metric` and its kinds; a metric of one's own has their members, and a YAML names it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from research.arguments import Recorded
from research.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from research.metrics.job import ScoredJob
    from research.metrics.saved_features import SavedFeatures


Sums = TypeVar("Sums")


@dataclass(frozen=True)
class MetricResult:
    """Numbers, and what they were computed with.

    Attributes:
        values: flat, ready for a table; every value is finite.
        info: plain JSON values; ``warnings`` is a list of lines for the user, empty if all is well. ``per_image`` has one number
            an image in their order, where the metric's value is the mean of such, and ``per_image_of`` those of further values
            by their names. ``comparable`` is a short hash: numbers
            of a metric may be ranked together only where it is equal, see `comparable`. ``better`` (``higher`` or ``lower``),
            ``bounds`` (``[low, high]``, null for none) and ``margin`` (how much worse is as good: ``0.5``, ``"5%"``) say of a
            metric of one's own what its name does not.
        features: what the images were turned into, for a set metric; the runner saves them.
    """

    values: dict[str, float]
    info: dict[str, Any] = field(default_factory=dict)
    features: SavedFeatures | None = None


class Metric(Recorded, ABC):
    """Scores the images of one job. Constructors are cheap; the first `compute` loads what is heavy.

    A class of one's own need not derive from it: ``name`` and `compute` are enough, see `as_metric`. A metric that asks for more
    than images is a `JobMetric`, one that several processes share the images of is an `AdditiveMetric`.

    Attributes:
        name: how the number is called; the metric's key in the config by default.
        needs_prompts: whether it says nothing of images without prompts.
    """

    name: str
    needs_prompts: bool = False

    def check(self, *, n_images: int) -> None:  # nothing to refuse, by default
        """Refuses a job that cannot be scored, before any weights are loaded.

        Raises:
            ConfigError: one line that names the key, what was found and what is accepted.
        """

    def check_job(self, config: Mapping[str, Any]) -> None:
        """Refuses a composed job that cannot be scored, before anything is loaded.

        Raises:
            ConfigError: as `check`.
        """

    @abstractmethod
    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device
    ) -> MetricResult:
        """Scores images, `prompts` holding one for each. Nothing of earlier calls enters the result."""


class JobMetric(Metric):
    """A metric that is told of the job too: its config, the input picture, the mask, and a way to sample again.

    A class of one's own that does not derive from it says ``needs_job = True``.
    """

    needs_job: ClassVar[bool] = True

    @abstractmethod
    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        device: str | torch.device,
        job: ScoredJob | None = None,
    ) -> MetricResult: ...


class AdditiveMetric(Metric, Generic[Sums]):
    """A metric that is a function of sums over images, of which several processes may take a part each; see `FID`."""

    @abstractmethod
    def add_up(
        self,
        images: Sequence[Image.Image],
        *,
        device: str | torch.device,
        rows: Sequence[int] | None = None,
        total: int | None = None,
    ) -> Sums:
        """Sums over images.

        Args:
            rows, total: of a part: where its images stand among how many.
        """

    @abstractmethod
    def parts(self, sums: Sums) -> tuple[Tensor, ...]:
        """The tensors of the sums that are to be added to those of the other processes, in place."""

    @abstractmethod
    def conclude(self, sums: Sums, *, device: str | torch.device) -> MetricResult:
        """The numbers, of the sums over all images."""


def as_metric(plug: object, key: str) -> Metric:
    """A metric whole: what a class of one's own leaves out is filled in.

    Args:
        plug: a `Metric`, or an object with a method ``compute`` and any of the other members. ``needs_job = True`` makes it a
            `JobMetric`, ``add_up``, ``parts`` and ``conclude`` an `AdditiveMetric`.
        key: the metric's key in the config; its name, where the object has none.

    Raises:
        ConfigError: it has no ``compute``.
    """
    if isinstance(plug, Metric):
        return plug
    if not callable(getattr(plug, "compute", None)):
        raise ConfigError(
            f"metrics.{key}: found a {type(plug).__name__} without a method compute; accepted is a metric."
        )
    if getattr(plug, "needs_job", False):
        return _JobPlug(plug, key)
    return _AdditivePlug(plug, key) if hasattr(plug, "add_up") else _Plug(plug, key)


class _Plug(Metric):
    """A user's object as a `Metric`."""

    def __init__(self, plug: Any, key: str) -> None:
        self.plug = plug
        self.name = str(getattr(plug, "name", key))
        self.needs_prompts = bool(getattr(plug, "needs_prompts", False))

    def check(self, *, n_images: int) -> None:
        if hasattr(self.plug, "check"):
            self.plug.check(n_images=n_images)

    def check_job(self, config: Mapping[str, Any]) -> None:
        if hasattr(self.plug, "check_job"):
            self.plug.check_job(config)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device
    ) -> MetricResult:
        return _result(self.plug.compute(images, prompts, device=device))


class _JobPlug(_Plug, JobMetric):
    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        device: str | torch.device,
        job: ScoredJob | None = None,
    ) -> MetricResult:
        return _result(self.plug.compute(images, prompts, device=device, job=job))


class _AdditivePlug(_Plug, AdditiveMetric[Any]):
    def add_up(
        self,
        images: Sequence[Image.Image],
        *,
        device: str | torch.device,
        rows: Sequence[int] | None = None,
        total: int | None = None,
    ) -> Any:
        return self.plug.add_up(images, device=device, rows=rows, total=total)

    def parts(self, sums: Any) -> tuple[Tensor, ...]:
        return tuple(self.plug.parts(sums))

    def conclude(self, sums: Any, *, device: str | torch.device) -> MetricResult:
        return _result(self.plug.conclude(sums, device=device))


def _result(found: Any) -> MetricResult:
    """Results of one's own may be of another class with the same members."""
    if isinstance(found, MetricResult):
        return found
    return MetricResult(found.values, getattr(found, "info", {}), getattr(found, "features", None))


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


def comparable(*what: object) -> str:
    """A short hash of what two numbers must have in common to be ranked together: 16 hex digits of their JSON's SHA-256.

    Names of models are left out, as a copy may lie elsewhere under another name: their weights' hash is what counts.
    """
    text = json.dumps([_unnamed(part) for part in what], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unnamed(part: object) -> object:
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


def listed_in(metric: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """What the info of a metric lists of single images, by the name of the value that is their mean."""
    further = info.get("per_image_of")
    return {metric: info.get("per_image"), **(further if isinstance(further, Mapping) else {})}
