"""The scheduler config that a model comes with, read without its weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.find_model import find_model
from research.models.inspect.safe_files import read_json

_FILE = "scheduler_config.json"
# pipelines that mend old settings on loading, and those of the same prefix that do not
_MENDING, _NOT_MENDING = "StableDiffusion", ("StableDiffusion3", "StableDiffusionXL")


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


def scheduler_config(path: str | os.PathLike[str], *, defaults: bool = True) -> ModelSchedule | None:
    """The schedule of a model: a zoo name, a directory in diffusers layout (of any pipeline), a folder or file with a
    ``scheduler_config.json``, or a hub id in the local cache. The network is never asked.

    Args:
        defaults: of Stable Diffusion, mend the config as its pipeline does, which imports diffusers; without, it is said that
            latents are not clipped, and no more.

    Returns:
        None for a hub model that is not in the cache, and for a checkpoint file, which has no scheduler config.

    Raises:
        ModelError: nothing is there, or it has no scheduler config that can be read.
    """
    name = os.fspath(path)
    found = find_model(name)
    if found.file is not None:
        return ModelSchedule(name, read_json(found.file), None) if found.file.suffix == ".json" else None
    directory = found.directory or _cached(str(found.hub_id))
    if directory is None:
        return None
    if (directory / _FILE).is_file():
        return ModelSchedule(name, read_json(directory / _FILE), None)
    file = directory / "scheduler" / _FILE
    if not file.is_file():
        raise ModelError(f"model.path: {name} has no scheduler; accepted is a directory with scheduler/{_FILE}.")
    config = read_json(file)
    index = directory / "model_index.json"
    pipeline = str(read_json(index).get("_class_name", "")) if index.is_file() else ""
    if mends(pipeline):
        return ModelSchedule(name, mended(config) if defaults else {**config, "clip_sample": False}, True)
    latent = (directory / "vae").is_dir() if index.is_file() else None
    return ModelSchedule(name, config, latent)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, f"scheduler/{_FILE}")
    return Path(found).parents[1] if isinstance(found, str) else None


def mends(pipeline: str) -> bool:
    """Whether a pipeline of this class mends its scheduler's config on loading, as `mended` does it."""
    return pipeline.startswith(_MENDING) and not pipeline.startswith(_NOT_MENDING)


def mended(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler config as `StableDiffusionPipeline` mends it on loading: two settings of old checkpoints are wrong."""
    import diffusers

    cls = getattr(diffusers, str(config.get("_class_name")), None)
    parameters = {} if cls is None else inspect.signature(cls.__init__).parameters
    settings = {**{name: parameter.default for name, parameter in parameters.items()}, **config}
    offset = {"steps_offset": 1} if settings.get("steps_offset", 1) != 1 else {}
    return {**config, **offset, **({"clip_sample": False} if settings.get("clip_sample") is True else {})}
