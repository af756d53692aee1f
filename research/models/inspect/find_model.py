"""Where a model is: a zoo name, a directory in diffusers layout, or a hub id. Needs no torch."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.errors import ModelError, nearest
from research.models.inspect.families import ACCEPTED, PIPELINES
from research.models.inspect.kinds import kind_of_folder
from research.models.inspect.safe_files import read_json, shown, unreadable
from research.zoo import zoo_names, zoo_path

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*$")


@dataclass(frozen=True)
class Located:
    """A model found: its local directory, the hub id it is to be fetched by, or a single file."""

    directory: Path | None
    hub_id: str | None = None
    file: Path | None = None


def find_pipeline(path: str | os.PathLike[str]) -> Located:
    """Find a model that can be driven, without reading its weights or the network.

    Raises:
        ModelError: nothing is there, or what is there is no model that can be driven.
    """
    found = find_model(path)
    if found.directory is not None:
        pipeline_class(found.directory)
    return found


def find_model(path: str | os.PathLike[str]) -> Located:
    """Find what a path, a zoo name or a hub id means, whatever it holds.

    Raises:
        ModelError: nothing is there, or it is neither a directory nor a file that can be read.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ModelError(f"model.path: found {path!r}; accepted is a zoo name, a directory, a file or a hub id.")
    name = os.fspath(path)
    if not name.strip() or "\0" in name:
        raise ModelError("model.path: found an empty name; accepted is a zoo name, a directory, a file or a hub id.")
    if not _can_be_a_path(name):
        raise ModelError(
            f"model.path: a name of {len(name)} characters that no file can have does not exist: {shown(name, 60)}"
        )
    if (known := zoo_path(name)) is not None:
        return Located(known)
    there = _expanded(name)
    if there.is_dir():
        return Located(there)
    if there.is_symlink() or _exists(there):
        if why := unreadable(there):
            raise ModelError(f"model.path: {name} {why}.")
        return Located(None, file=there)
    if _HUB_ID.match(name):
        return Located(None, hub_id=name)
    raise ModelError(
        f"model.path: {name!r} does not exist.{nearest(name, zoo_names())} Accepted: a zoo model "
        f"({', '.join(zoo_names())}), a directory in diffusers layout, a checkpoint file, or a hub id such as 'owner/name'."
    )


def config_directory(config: str | os.PathLike[str]) -> Path:
    """The directory that a ``config`` argument means: a path or a zoo name.

    Raises:
        ModelError: there is no such directory.
    """
    try:
        found = find_model(config)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "model.config", 1)) from error
    if found.directory is None:
        raise ModelError(
            f"model.config: {config} is no directory; accepted is a diffusers directory with component configs."
        )
    return found.directory


def _can_be_a_path(name: str) -> bool:
    try:
        os.lstat(name)
    except (ValueError, OSError) as error:  # characters, or a length, that no file's name can have
        return isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG
    return True


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~nobody"
        return Path(name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, say
        return False


def read_index(directory: Path) -> dict[str, Any]:
    """``model_index.json`` of a diffusers directory.

    Raises:
        ModelError: the directory has none, or it cannot be read.
    """
    if not directory.is_dir():
        raise ModelError(
            f"model.path: {directory} is a single file; accepted is a directory in diffusers layout (with model_index.json)."
        )
    index = directory / "model_index.json"
    if not index.exists() and not index.is_symlink():
        kind = kind_of_folder(directory)
        accepted = (
            "" if "model_index.json" in kind.what + kind.advice else "accepted is a directory with model_index.json"
        )
        raise ModelError(f"model.path: {directory} {kind.sentence(accepted)}")
    content = read_json(index)
    if not isinstance(content.get("_class_name"), str):
        raise ModelError(f"model.path: {index} names no pipeline: '_class_name' is missing.")
    return content


def pipeline_class(directory: Path) -> str:
    """The pipeline class that a directory is for, if one of the families drives it.

    Raises:
        ModelError: no model, or one of a family that is not supported.
    """
    name = read_index(directory)["_class_name"]
    if name not in PIPELINES:
        raise ModelError(f"model.path: {directory} is a {shown(name)}, which is not supported. Accepted: {ACCEPTED}.")
    return name
