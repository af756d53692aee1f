"""What can be said about a job's model from its small files, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from research.errors import ConfigError, ModelError
from research.models.inspect.find_model import find_pipeline, read_index
from research.models.inspect.parts import choose_variant
from research.models.inspect.weights import check_safetensors, weight_files

_WEIGHTED = ("unet", "vae", "text_encoder", "transformer", "depth_estimator")


def check_model(config: Mapping[str, Any]) -> None:
    """Check that the model is there and whole, and that steps and size can work with it. Hub models are checked when they load.

    Raises:
        ModelError: no such model, or a broken one.
        ConfigError: more steps than the scheduler has timesteps.
    """
    directory = find_pipeline(config["model"]["path"]).directory
    if directory is None:
        return
    _check_files(directory, config["model"]["allow_pickle"])
    known = _read(directory / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000)
    timesteps = config["scheduler"]["options"].get("num_train_timesteps", known)
    if isinstance(timesteps, int) and config["steps"] > timesteps:
        raise ConfigError(
            f"steps: found {config['steps']}; accepted is a whole number from 1 to {timesteps}, the timesteps of the scheduler."
        )
    _check_size(directory, config["task"])


@lru_cache(maxsize=64)
def _check_files(directory: Path, allow_pickle: bool) -> None:
    index = read_index(directory)
    parts = [name for name in _WEIGHTED if isinstance(index.get(name), list) and index[name][0] is not None]
    variant = choose_variant(directory, parts)
    for part in parts:
        files, safe = weight_files(directory / part, allow_pickle=allow_pickle, variant=variant)
        for file in files if safe else ():
            check_safetensors(file)


def _check_size(directory: Path, task: Mapping[str, Any]) -> None:
    blocks = _read(directory / "vae" / "config.json").get("block_out_channels")
    if not blocks:
        return
    factor = 2 ** (len(blocks) - 1)
    for key in ("height", "width"):
        pixels = task.get(key)
        if pixels is None:
            continue
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1 or pixels % factor:
            raise ConfigError(
                f"task.{key}: found {pixels!r}; accepted is a positive multiple of {factor}, the factor of the VAE."
            )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {file} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}
