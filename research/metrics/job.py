"""What a metric may be told of the job whose images it scores: the pictures it started from, and a way to sample it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from research.errors import ConfigError
from research.picture_modes import WHITE, as_shown

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_WITH_IMAGE = "image_to_image, inpaint, depth_to_image, inversion"


class Resample(Protocol):
    """Samples a job's seeds and prompts again."""

    def __call__(self, steps: int, scheduler: str | None = None) -> Tensor:
        """The latents [N, C, h, w] at the end of each trajectory, before decoding.

        Args:
            steps: the user's steps.
            scheduler: a short name or class name; the job's own, with its options, by default.
        """
        ...


@dataclass(frozen=True)
class Grid:
    """The noise levels (sigma) that so many steps visit.

    Attributes:
        levels: where each of the user's steps that are taken begins, by its number.
        end: what the last one leads to; 0 is clean.
    """

    levels: Mapping[int, float]
    end: float

    @property
    def first(self) -> float:
        return next(iter(self.levels.values()))

    @property
    def last(self) -> float:
        return list(self.levels.values())[-1]


class Path(Protocol):
    """Samples as `Resample`, and tells where its steps lead."""

    def __call__(self, steps: int, scheduler: str | None, at: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The latents at the end [N, C, h, w], and at the beginning of some steps (their numbers) the clean latents that the
        model predicts, which are where a last step from there would end."""
        ...


@dataclass(frozen=True)
class ScoredJob:
    """A job as its metrics see it.

    Attributes:
        config: the composed config.
        seeds: one an image.
        sample: samples it again; None where only images are there.
        grid: the noise levels of so many steps of a scheduler, the job's own by default; None as above.
        finer: of a scheduler the number of steps nearest to a wanted one, between a least and a most, that begin at the noise
            level of so many of the job's own, ``finer(own, scheduler, wanted, least, most)``, and None if none do; None as above.
        path: samples again and tells where steps lead; None as above.
    """

    config: Mapping[str, Any]
    seeds: Sequence[int]
    sample: Resample | None = None
    grid: Callable[[int, str | None], Grid] | None = None
    finer: Callable[[int, str | None, int, int, int], int | None] | None = None
    path: Path | None = None

    def inputs(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The picture that each image was started from, resized to the image's size as the task resizes it."""
        return [as_shown(image) for image in self._pictures("image", images)]

    def masks(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The mask of each image as a grey picture of its size, white where the model drew."""
        return self._pictures("mask", images)

    def _pictures(self, key: str, images: Sequence[Image.Image]) -> list[Image.Image]:
        import torch
        from PIL import Image

        from research import pictures

        task = self.config["task"]
        background = task.get("background", WHITE)
        given = pictures.read(f"task.{key}", task[key], len(images), mask=key == "mask", background=background)
        made: dict[tuple[int, tuple[int, int]], Image.Image] = {}
        found = []
        for row, image in enumerate(images):
            place, (width, height) = row if len(given) > 1 else 0, image.size
            if (place, image.size) not in made:
                one = [given[place]]
                if key == "mask":
                    values = pictures.to_masks(one, 1, height, width, binary=False)[0]
                else:
                    values = pictures.to_pixels(f"task.{key}", one, 1, height, width)[0] / 2 + 0.5
                array = (values * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
                made[place, image.size] = Image.fromarray(array[..., 0] if key == "mask" else array)
            found.append(made[place, image.size])
        return found


def needs_image(
    key: str, config: Mapping[str, Any], what: str = "compares images with the picture they were started from"
) -> None:
    """Raises ConfigError, before anything is loaded, for a job whose task starts from no picture.

    Args:
        key: the metric in the config ("metrics.ssim").
        config: the composed job.
        what: why the metric needs one, for the message.
    """
    task = config["task"]
    if task.get("image") is None:
        raise ConfigError(
            f"{key}: {what}, and task {_task(task)} has none; accepted are tasks with one: {_WITH_IMAGE}."
        )


def needs_mask(key: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError, before anything is loaded, for a job whose task has no mask."""
    task = config["task"]
    if task.get("mask") is None:
        raise ConfigError(
            f"{key}: found 'kept' or 'drawn' with task {_task(task)}, which has no mask; accepted is 'all', or task=inpaint."
        )


def required_job(key: str, job: ScoredJob | None) -> ScoredJob:
    """The job, for a metric that cannot do without.

    Raises:
        ConfigError: none was given.
    """
    if job is None:
        raise ConfigError(
            f"{key}: needs the job besides its images; accepted is compute(..., job=ScoredJob(config, seeds))."
        )
    return job


def _task(task: Mapping[str, Any]) -> str:
    return str(task.get("_target_", "")).rpartition(".")[2] or "(none)"
