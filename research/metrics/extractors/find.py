"""Where evaluation models and reference statistics are; checked when a job is composed, without torch."""

from __future__ import annotations

import re
from pathlib import Path

from research.errors import ConfigError, nearest
from research.metrics.extractors.efficientnet import EFFICIENTNET, check_efficientnet
from research.metrics.extractors.inception import INCEPTION, check_inception
from research.zoo import ZOO_DIR, zoo_path

REFERENCES_DIR = ZOO_DIR / "references"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*$")


def locate_clip(name: str, key: str) -> Path | None:
    """The directory of a CLIP model, or None for a hub id, which only the hub can tell more about.

    Args:
        name: a zoo name, a directory or a hub id.
        key: the config key it came from, for the error.

    Raises:
        ConfigError: nothing is there, or what is there is no CLIP model.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: found {name!r}; accepted is a zoo name, a directory or a hub id.")
    directory = zoo_path(name) or Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ConfigError(f"{key}: {name!r} is no CLIPModel: it has no config.json.{_accepted_clip(name)}")
        return directory
    if _HUB_ID.match(name):
        return None
    raise ConfigError(f"{key}: {name!r} does not exist.{_accepted_clip(name)}")


def locate_features(name: str, key: str) -> Path | None:
    """The directory of a feature extractor; None for a hub id, or for one that comes with an extra.

    Raises:
        ConfigError: nothing is there, or an extra is not installed.
    """
    if name == INCEPTION:
        check_inception(key)
        return None
    if name == EFFICIENTNET:
        check_efficientnet(key)
        return None
    return locate_clip(name, key)


def locate_reference(name: str, key: str) -> Path:
    """A reference file of the zoo, a statistics file, or a directory of at least 2 images.

    Raises:
        ConfigError: nothing is there, or a directory without images.
    """
    names = sorted(p.stem for p in REFERENCES_DIR.glob("*.safetensors"))
    accepted = (
        f"{nearest(str(name), names)} Accepted: shipped statistics ({', '.join(names) or 'none here'}), "
        "a .safetensors file of statistics, or a directory of images."
    )
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: found {name!r}.{accepted}")
    if name in names:
        return REFERENCES_DIR / f"{name}.safetensors"
    path = Path(name).expanduser()
    if path.is_dir():
        found = sum(1 for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if found < 2:
            raise ConfigError(f"{key}: directory {name!r} holds {found} images; accepted is at least 2.")
        return path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"{key}: found the file {name!r}.{accepted}")
        return path
    raise ConfigError(f"{key}: {name!r} does not exist.{accepted}")


def _accepted_clip(name: str) -> str:
    names = sorted(p.parent.name for p in ZOO_DIR.glob("*/config.json"))
    return (
        f"{nearest(name, names)} Accepted: an evaluation model of the zoo ({', '.join(names) or 'none here'}), "
        "a directory, or a hub id such as 'openai/clip-vit-large-patch14'."
    )
