"""The scheduler config that a model comes with, read without its weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.errors import ModelError
from research.models.inspect.families import mends
from research.models.inspect.find_model import find_model, read_index
from research.models.inspect.fit_file import heeded
from research.models.inspect.hub import cached_directory
from research.models.inspect.kinds import check_file
from research.models.inspect.parts import folder_of, scheduler_settings
from research.models.inspect.safe_files import read_json

_FILE = "scheduler_config.json"


@dataclass(frozen=True)
class ModelSchedule:
    """What a model was trained with.

    Attributes:
        path: as it was given.
        config: as `SolverFactory` takes it, mended as the model's pipeline does.
        latent: whether the network works on latents (None: not known).
    """

    path: str
    config: dict[str, Any]
    latent: bool | None


def scheduler_config(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    *,
    defaults: bool = True,
    revision: str | None = None,
    subfolder: str | None = None,
) -> ModelSchedule | None:
    """The schedule of a model: a zoo name, a directory in diffusers layout (of any pipeline), a folder or file with a
    ``scheduler_config.json``, or a hub id in the local cache. The network is never asked.

    Args:
        config: of a checkpoint file, the directory of its configs; what the file says of itself is heeded.
        defaults: of Stable Diffusion, mend the config as its pipeline does, which imports diffusers; without, it is said that
            latents are not clipped, and no more.
        revision, subfolder: as of `research.load_model`.

    Returns:
        None for a hub model that is not in the cache, and for a checkpoint file, which has no scheduler config.

    Raises:
        ModelError: nothing is there, or it has no scheduler config that can be read.
    """
    name = os.fspath(path)
    found = find_model(name, revision=revision, subfolder=subfolder)
    if found.file is not None and config is not None:
        given = scheduler_config(config, defaults=defaults)
        checkpoint = check_file(found.file).checkpoint
        if given is None or checkpoint is None:
            return given
        return ModelSchedule(name, heeded(given.config, checkpoint.marks)[0], given.latent)
    if found.file is not None:
        return ModelSchedule(name, read_json(found.file), None) if found.file.suffix == ".json" else None
    directory = found.directory or cached_directory(found)
    if directory is None:
        return None
    has_index = (directory / "model_index.json").is_file()
    if (directory / _FILE).is_file() and not has_index:
        return ModelSchedule(name, read_json(directory / _FILE), None)
    if not (folder_of(directory, "scheduler") / _FILE).is_file():
        raise ModelError(f"model.path: {name} has no scheduler; accepted is a directory with scheduler/{_FILE}.")
    index = read_index(directory) if has_index else {}
    stored, _ = scheduler_settings(directory, index)
    pipeline = str(index.get("_class_name", ""))
    if mends(pipeline):
        return ModelSchedule(name, mended(stored) if defaults else {**stored, "clip_sample": False}, True)
    latent = (directory / "vae").is_dir() if has_index else None
    return ModelSchedule(name, stored, latent)


def mended(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler config as `StableDiffusionPipeline` mends it on loading: two settings of old checkpoints are wrong."""
    import diffusers

    cls = getattr(diffusers, str(config.get("_class_name")), None)
    parameters = {} if cls is None else inspect.signature(cls.__init__).parameters
    settings = {**{name: parameter.default for name, parameter in parameters.items()}, **config}
    offset = {"steps_offset": 1} if settings.get("steps_offset", 1) != 1 else {}
    return {**config, **offset, **({"clip_sample": False} if settings.get("clip_sample") is True else {})}
