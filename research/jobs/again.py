"""Images made once more: from a job's record, or from what a picture carries, with all that decides how they look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.jobs import images, job_images, process_cache
from research.jobs.build import Origin, sampler_of
from research.jobs.record import RESULT, DamagedRecord, NoRecord, read_result
from research.jobs.schema import LOOP, MODEL_LEVELS
from research.jobs.scoring import sampler_and_task
from research.jobs.store import IMAGES

if TYPE_CHECKING:
    from PIL import Image

_NO_JOB = "its job's folder is not there"


@dataclass(frozen=True)
class Recipe:
    """What makes some images.

    Attributes:
        record: the file that says it.
        name: of the job.
        config: the composed config.
        files: the images, by the number of each among those of the job.
        weights_sha256: of the model that made them; empty where it is not known.
    """

    record: Path
    name: str
    config: Mapping[str, Any]
    files: Mapping[int, Path]
    weights_sha256: str = ""


def read_recipe(place: Path) -> Recipe:
    """The recipe of a job's folder, of a picture in one, or of a picture that was taken elsewhere.

    Raises:
        UserError: there is nothing, or a picture that carries no recipe, or one that only its job's folder could make.
    """
    if place.is_dir():
        return _of_job(place)
    if not place.is_file():
        raise UserError(f"{place}: found neither a picture nor a job's folder; accepted is one of them.")
    folder = place.resolve().parent
    for job in (folder, folder.parent):
        if (job / RESULT).is_file():
            whole = _of_job(job)
            mine = {row: file for row, file in whole.files.items() if file.resolve() == place.resolve()}
            if mine:
                return replace(whole, files=mine)
    return _of_picture(place)


def _of_job(folder: Path) -> Recipe:
    try:
        result = read_result(folder)
    except (DamagedRecord, NoRecord) as error:
        raise UserError(str(error)) from None
    if not result.images:
        raise UserError(f"{folder}: its job is {result.status} and has no images.")
    files = {row: folder / image.file for row, image in enumerate(result.images)}
    return Recipe(folder / RESULT, result.job_id, result.config, files, result.weights_sha256 or "")


def _of_picture(file: Path) -> Recipe:
    try:
        carried = images.recipe(file)
        settings = {key: carried[key] for key in ("model", "scheduler", "guidance", "task", "hooks", "steps", "seed")}
        settings["sigmas"] = carried.get("sigmas") or dict(MODEL_LEVELS)
        settings["sampler"] = carried.get("sampler") or dict(LOOP)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{file}: carries no recipe of this project; accepted are pictures as a job saved them, or a job's folder."
        ) from None
    prompt, model = carried.get("prompt"), dict(settings["model"])
    weights = str(model.pop("weights_sha256", None) or "")
    config = {
        **settings,
        "model": model,
        "prompts": [prompt or ""],
        "images_per_prompt": 1,
        "batch_size": 1,
        "runtime": {"parity": bool(carried.get("parity")), "threads": None},
    }
    several = [key for key, value in settings["task"].items() if isinstance(value, list)]
    if job_images.makes_frames(config) or several:
        raise UserError(
            f"{file}: task.{several[0] if several else 'frames'} goes by the image's number, and {_NO_JOB}."
        )
    return Recipe(file, str(carried.get("job_id", "picture")), config, {0: file}, weights)


def make_again(recipe: Recipe, origin: Origin) -> Iterator[tuple[int, Image.Image]]:
    """The images of a recipe by their numbers, each when it is made.

    Raises:
        UserError: the record names what it may not, or something of it is no longer there.
    """
    config, rows = recipe.config, list(recipe.files)
    process_cache.libraries()
    process_cache.set_threads(config["runtime"].get("threads"))
    loop, task = sampler_and_task(config, origin)
    sampler = sampler_of(config, origin, loop) or loop
    if recipe.weights_sha256 not in ("", sampler.model.weights_sha256):
        raise UserError(
            f"model.path: the weights of {config['model']['path']} are not those that made the images of {recipe.record}."
        )
    if sampler.images_together > 1 and not recipe.record.name.endswith(RESULT):
        raise UserError(
            f"{recipe.record}: sampler {config['sampler'].get('name')} makes an image together with others, and {_NO_JOB}."
        )
    size = config["batch_size"] if isinstance(config["batch_size"], int) else 32
    size = max(min(size, len(rows) * sampler.candidates), sampler.images_together)
    seeds = job_images.seeds(config)
    left = iter(rows)
    for result in sampler.batches(task, seeds=seeds, steps=config["steps"], rows=rows, batch_size=size):
        for image in result.images:
            yield next(left), image


def differences(one: Image.Image, other: Image.Image) -> int | None:
    """The greatest difference of two pictures in steps of 255, or None where they have other sizes."""
    import numpy as np

    a, b = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (one, other))
    return int(np.abs(a - b).max(initial=0)) if a.shape == b.shape else None


def folder_of(recipe: Recipe) -> Path:
    """Where the images of a recipe go by default."""
    return Path("again", recipe.name, IMAGES)
