"""Where a model is: a zoo name, a directory in diffusers layout, or a hub id. Needs no torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import ModelError, nearest
from research.zoo import zoo_names, zoo_path

# pipeline class in model_index.json -> the family that drives it, as "module:class"
FAMILIES = {
    "StableDiffusionPipeline": "research.models.unet_text:UnetTextModel",
    "StableDiffusionImg2ImgPipeline": "research.models.unet_text:UnetTextModel",
    "StableDiffusionInpaintPipeline": "research.models.unet_text:UnetTextModel",
    "StableDiffusionDepth2ImgPipeline": "research.models.unet_text:UnetTextModel",
    "DDPMPipeline": "research.models.unet_pixel:UnetPixelModel",
    "DDIMPipeline": "research.models.unet_pixel:UnetPixelModel",
    "PNDMPipeline": "research.models.unet_pixel:UnetPixelModel",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*$")


@dataclass(frozen=True)
class Located:
    """A model found: its local directory, or the hub id it is to be fetched by."""

    directory: Path | None
    hub_id: str | None = None


def locate(path: str | os.PathLike[str]) -> Located:
    """Find a model without reading its weights or the network.

    Raises:
        ModelError: nothing is there, or what is there is no model that can be driven.
    """
    if not isinstance(path, str | os.PathLike):
        raise ModelError(f"model.path: found {path!r}; accepted is a zoo name, a directory or a hub id.")
    name = os.fspath(path)
    if not name:
        raise ModelError("model.path: found an empty name; accepted is a zoo name, a directory or a hub id.")
    if (found := zoo_path(name)) is not None:
        directory = Path(found)
    elif Path(name).expanduser().exists():
        directory = Path(name).expanduser()
    elif _HUB_ID.match(name):
        return Located(None, hub_id=name)
    else:
        raise ModelError(
            f"model.path: {name!r} does not exist.{nearest(name, zoo_names())} Accepted: a zoo model "
            f"({', '.join(zoo_names())}), a directory in diffusers layout, or a hub id such as 'owner/name'."
        )
    pipeline_class(directory)
    return Located(directory)


def read_index(directory: Path) -> dict[str, Any]:
    """``model_index.json`` of a diffusers directory.

    Raises:
        ModelError: the directory has none, or it cannot be read.
    """
    if directory.is_file():
        raise ModelError(
            f"model.path: {directory} is a single file; accepted is a directory in diffusers layout (with model_index.json)."
        )
    index = directory / "model_index.json"
    if not index.is_file():
        inside = ", ".join(sorted(p.name for p in directory.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"model.path: {directory} is no model in diffusers layout: it has no model_index.json (found {inside})."
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path: {index} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("_class_name"), str):
        raise ModelError(f"model.path: {index} names no pipeline: '_class_name' is missing.")
    return content


def pipeline_class(directory: Path) -> str:
    """The pipeline class that a directory is for, if one of the families drives it.

    Raises:
        ModelError: no model, or one of a family that is not supported.
    """
    name = read_index(directory)["_class_name"]
    if name not in FAMILIES:
        raise ModelError(
            f"model.path: {directory} is a {name}, which is not supported yet.{nearest(name, FAMILIES)} "
            f"Accepted: {', '.join(sorted(FAMILIES))}."
        )
    return name
