"""What a model is, told from its small files: enough to say whether task, guidance and scheduler fit it before weights load."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from research.errors import ConfigError, ModelError
from research.models.geometry import LatentGeometry, pixel_shape
from research.models.inspect.families import family_of
from research.models.inspect.find_model import config_directory, find_pipeline, pipeline_class, read_index
from research.models.inspect.fit import completed_config
from research.models.inspect.fit_file import fit_file
from research.models.inspect.hub import local_directory
from research.models.inspect.kinds import is_safetensors, look_at
from research.models.inspect.parts import folder_of
from research.models.inspect.safe_files import read_json
from research.models.inspect.weights import read_header
from research.models.patching import outlined_layers
from research.models.scheduler_config import scheduler_config
from research.models.size_conditioning import KEY as SIZE_CONDITIONING
from research.models.size_conditioning import SizeConditioning
from research.models.weak_model import KEY, check_fit
from research.sampling.interfaces import ModelFacts
from research.solvers.upstream_levels import Shape


class Family(Protocol):
    """What the class of a model family says of its models before they load."""

    family: str
    network_part: str
    max_length: int | None
    size_conditioning: Mapping[str, Any] | None

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]: ...

    @classmethod
    def schedule_of(
        cls, network: Mapping[str, Any], scheduler: Any, steps: int, shape: Shape, parity: bool
    ) -> Mapping[str, Any]: ...


@dataclass(eq=False)
class Outline:
    """A model as tasks and guidance ask it in their checks; the same names as on the loaded model."""

    name: str
    path: str
    family: str | None
    supports: frozenset[str]
    scheduler_config: Mapping[str, Any]
    of: type[Family]  # the family's class
    network_config: Mapping[str, Any] = field(default_factory=dict)
    geometry: LatentGeometry | None = None
    own_shape: tuple[int, int, int] | None = None  # of a model on pixels
    n_classes: int | None = None
    null_class: int | None = None
    distilled_guidance: float | None = None
    has_depth: bool = False
    max_length: int | None = None
    middle_layers: tuple[str, ...] = ()
    size_conditioning: Mapping[str, Any] | None = None
    resizes_pictures: bool = False
    encodes_once: bool = False
    tells_strength: bool = False

    @property
    def vae_factor(self) -> int:
        return self.geometry.vae_factor if self.geometry else 1

    @property
    def size_multiple(self) -> int:
        return self.geometry.vae_factor * self.geometry.patch if self.geometry else 1

    @property
    def role(self) -> str:
        return self.geometry.role(self.path) if self.geometry else "text"

    def latent_shape(self, height: Any = None, width: Any = None) -> tuple[int, int, int]:
        if self.geometry:
            return self.geometry.latent_shape(height, width)
        assert self.own_shape is not None
        return pixel_shape(self.own_shape, height, width)

    def schedule(self, scheduler: Any, steps: int, shape: Shape | None, parity: bool) -> Mapping[str, Any]:
        """As on the loaded model."""
        known = shape or self.latent_shape()
        return self.of.schedule_of(self.network_config, scheduler, steps, known, parity)

    def layers(self, kind: str) -> list[str]:
        """As on the loaded model; the network is built once without its weights.

        Raises:
            ConfigError: an unknown kind.
            ModelError: the config makes no network.
        """
        config = json.dumps(dict(self.network_config), sort_keys=True)
        return list(outlined_layers(config, kind, text=self.family == "unet-text"))

    def check_second(self, path: str | os.PathLike[str] | None) -> None:
        """As on the loaded model: raise a ConfigError if another one's small files say that it cannot guide this one."""
        check_second(self, path)


def outline(
    path: str,
    config: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    offline: bool | None = None,
) -> Outline | None:
    """The outline of a model on this disk, also in the hub's cache; None for one that has to be fetched and for a single file
    without ``config``, which are looked at when they load.

    Args:
        config: of a single file, the directory of its configs.
        revision, subfolder, offline: as of `research.load_model`.

    Raises:
        ModelError: there is no such model, or its configs do not tell; or the file does not fit them.
    """
    found = find_pipeline(path, revision=revision, subfolder=subfolder)
    directory = local_directory(found, offline=offline)
    if found.file is not None and config is not None:
        directory = config_directory(config)
        header = read_header(found.file) if is_safetensors(found.file) else None
        fit_file(found.file, look_at(found.file), header, directory)
    if directory is None:
        return None
    known = family_of(pipeline_class(directory))
    assert known is not None
    module, _, name = known.driver.partition(":")
    family: type[Family] = getattr(importlib.import_module(module), name)
    schedule = scheduler_config(
        path, config if found.file is not None else None, revision=revision, subfolder=subfolder
    )
    index = read_index(directory)
    configs = {
        name: completed_config(name, read_json(file), index)
        for name in index
        if not name.startswith("_") and (file := folder_of(directory, name) / "config.json").is_file()
    }
    return Outline(
        name=Path(path).name,
        path=path,
        family=family.family,
        scheduler_config=schedule.config if schedule else {},
        of=family,
        max_length=family.max_length,
        size_conditioning=family.size_conditioning,
        network_config=configs.get(family.network_part)
        or read_json(folder_of(directory, family.network_part) / "config.json"),
        **family.facts_of(configs, index),
    )


class Choosable(Protocol):
    """A model, or its outline, as `check_choices` asks it."""

    name: str
    distilled_guidance: float | None
    max_length: int | None
    size_conditioning: Mapping[str, Any] | None


def check_choices(
    model: Choosable,
    distilled_guidance: float | None,
    max_sequence_length: int | None,
    size_conditioning: Mapping[str, Any] | None = None,
) -> None:
    """Check that a model is of a family of which these can be chosen; None, its pipeline's, always can.

    Raises:
        ConfigError: it is not.
    """
    if distilled_guidance is not None and model.distilled_guidance is None:
        raise ConfigError(
            f"model.distilled_guidance: found {distilled_guidance:g}; the network of {model.name} is told no guidance scale, "
            "accepted is null."
        )
    if max_sequence_length is not None and model.max_length is None:
        raise ConfigError(
            f"model.max_sequence_length: found {max_sequence_length}; {model.name} takes as many tokens as its text encoder, "
            "accepted is null."
        )
    SizeConditioning.of(size_conditioning)
    if size_conditioning and model.size_conditioning is None:
        raise ConfigError(
            f"{SIZE_CONDITIONING}: found {dict(size_conditioning)}; the network of {model.name} is told no sizes, accepted is "
            "null."
        )


def check_second(model: ModelFacts, path: str | os.PathLike[str] | None) -> None:
    """Check from its small files that a second model fits a first one. One that is not on this disk is looked at when it
    loads; None, the model itself made worse, fits.

    Raises:
        ConfigError: there is no such model, or it differs where they must agree; the message names ``guidance.model``.
    """
    if path is None:
        return
    try:
        second = outline(os.fspath(path))
    except (ModelError, TypeError) as error:
        raise ConfigError(str(error).replace("model.path:", f"{KEY}:", 1)) from error
    if second is not None:
        check_fit(model, second)
