"""Where a model is: a zoo name, a directory in diffusers layout, or a hub id. Needs no torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.errors import ModelError, nearest
from research.hub_cache import HubId, hub_id, repository_folder
from research.models.inspect.families import FAMILIES, PIPELINES, left_out, named_pipeline, not_driven, pipeline_of
from research.models.inspect.kinds import check_file, kind_of_folder
from research.models.inspect.safe_files import read_json, shown, unreadable
from research.zoo import zoo_names, zoo_path

_IN_ANY = ("safety_checker", "feature_extractor", "image_encoder")  # which no picture depends on here
_SUBFOLDER = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class Located:
    """A model found: its local directory, the hub id it is to be fetched by, or a single file.

    Attributes:
        hub: of the hub's model; its revision is None for the newest of the main branch.
        subfolder: of the hub's repository, in which the model is; a directory has it already.
    """

    directory: Path | None
    hub: HubId | None = None
    file: Path | None = None
    subfolder: str | None = None


def find_pipeline(
    path: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None
) -> Located:
    """Find a model that can be driven, without reading its weights or the network.

    Raises:
        ModelError: nothing is there, or what is there is no model that can be driven.
    """
    found = find_model(path, revision=revision, subfolder=subfolder)
    if found.directory is not None:
        pipeline_class(found.directory)
    elif found.file is not None:
        check_file(found.file)
    return found


def find_configured(model: Mapping[str, Any]) -> Located:
    """`find_pipeline` of the section ``model`` of a config."""
    return find_pipeline(model["path"], revision=model.get("revision"), subfolder=model.get("subfolder"))


def find_model(path: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None) -> Located:
    """Find what a path, a zoo name or a hub id means, whatever it holds.

    Args:
        revision: of a hub's model, a branch, tag or commit; as well as "owner/name@revision".
        subfolder: where in the directory, or in the hub's repository, the model is.

    Raises:
        ModelError: nothing is there, it is neither a directory nor a file that can be read, a revision of what is not the hub's.
    """
    for key, value in (("revision", revision), ("subfolder", subfolder)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ModelError(f"model.{key}: found {value!r}; accepted is a name, or null.")
    if subfolder is not None and (not _SUBFOLDER.fullmatch(subfolder) or ".." in subfolder.split("/")):
        raise ModelError(f"model.subfolder: found {shown(subfolder)!r}; accepted is a folder inside, such as 'a/b'.")
    found = _find(path, revision)
    if subfolder is None:
        return found
    if found.file is not None:
        raise ModelError(f"model.subfolder: found {subfolder!r} with the file {path}; accepted is null there.")
    if found.directory is None:
        return replace(found, subfolder=subfolder)
    inside = found.directory / subfolder
    if not inside.is_dir():
        inner = ", ".join(sorted(each.name for each in found.directory.iterdir() if each.is_dir())[:6])
        raise ModelError(
            f"model.subfolder: {found.directory} has no folder {subfolder!r} (found {shown(inner) or 'none'})."
        )
    return Located(inside)


def _find(path: str | os.PathLike[str], revision: str | None) -> Located:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ModelError(f"model.path: found {path!r}; accepted is a zoo name, a directory, a file or a hub id.")
    name = os.fspath(path)
    if not name.strip() or "\0" in name:
        raise ModelError("model.path: found an empty name; accepted is a zoo name, a directory, a file or a hub id.")
    if not _can_be_a_path(name):
        raise ModelError(
            f"model.path: a name of {len(name)} characters that no file can have does not exist: {shown(name, 60)}"
        )
    known = zoo_path(name)
    there = _expanded(name)
    if known is None and (repository := repository_folder(there)) is not None:
        return _of_cache(there, repository, revision)
    local = known if known is not None else there if there.is_dir() or there.is_symlink() or _exists(there) else None
    if local is not None and revision is not None:
        raise ModelError(
            f"model.revision: found {revision!r} with {name}, which is on this disk; accepted is null there."
        )
    if local is not None and local.is_dir():
        return Located(local)
    if local is not None:
        if why := unreadable(local):
            raise ModelError(f"model.path: {name} {why}.")
        return Located(None, file=local)
    if (of_hub := hub_id(name)) is not None:
        if revision is not None and of_hub.revision not in (None, revision):
            raise ModelError(f"model.revision: found {revision!r} with {name}; accepted is one revision.")
        return Located(None, hub=replace(of_hub, revision=revision or of_hub.revision))
    raise ModelError(
        f"model.path: {name!r} does not exist.{nearest(name, zoo_names())} Accepted: a zoo model "
        f"({', '.join(zoo_names())}), a directory in diffusers layout, a checkpoint file, or a hub id such as 'owner/name'."
    )


def _of_cache(path: Path, repository: Path, revision: str | None) -> Located:
    """The snapshot that is meant by the folder in which the hub's cache keeps a repository."""
    asked = revision or "main"
    ref = repository / "refs" / asked
    snapshots = repository / "snapshots"
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else asked
    kept = sorted(each for each in snapshots.iterdir() if each.is_dir()) if snapshots.is_dir() else []
    found = [each for each in kept if each.name == commit]
    if not found and revision is None:
        found = kept
    if len(found) != 1:
        has = ", ".join(each.name for each in kept) or "none"
        raise ModelError(
            f"model.path: {path} is a folder of the hub's cache with no snapshot of {asked!r} (found {shown(has)}); accepted is "
            "one of its snapshots, as snapshots/COMMIT or model.revision=COMMIT."
        )
    return Located(found[0])


def config_directory(config: str | os.PathLike[str]) -> Path:
    """The directory that a ``config`` argument means: a path or a zoo name.

    Raises:
        ModelError: there is no such directory.
    """
    try:
        found = find_model(config)
    except ModelError as error:
        said = str(error).partition("Accepted: ")[0].strip()
        accepted = (
            ""
            if said == str(error)
            else " Accepted: a directory in diffusers layout with component configs, or a zoo model."
        )
        raise ModelError(said.replace("model.path", "model.config", 1) + accepted) from error
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
    """``model_index.json`` of a diffusers directory; its ``_class_name`` is the pipeline of a family that it stands for, where
    it stands for one (see `pipeline_of`).

    Raises:
        ModelError: the directory has none, or it cannot be read.
    """
    content = _index(directory)
    return {**content, "_class_name": pipeline_of(content) or named_pipeline(content)}


def _index(directory: Path) -> dict[str, Any]:
    """As it stands there."""
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
    if named_pipeline(content) is None:
        why = f"is {shown(content['_class_name'], 40)!r}" if content.get("_class_name") else "is missing"
        raise ModelError(f"model.path: {index} names no pipeline: '_class_name' {why}.")
    return content


def pipeline_class(directory: Path) -> str:
    """The pipeline class that a directory is for, if one of the families drives it.

    Raises:
        ModelError: no model, or one of a family that is not supported.
    """
    content = _index(directory)
    found = pipeline_of(content)
    if found is None:
        raise ModelError(f"model.path: {directory} is a {shown(named_pipeline(content))}, {not_driven(content)}")
    return found


def index_notes(directory: Path) -> list[str]:
    """What is read otherwise than ``model_index.json`` says it."""
    content = _index(directory)
    named, found = named_pipeline(content), pipeline_of(content)
    if found is None or named == found:
        return []
    more = [name for name in left_out(content, FAMILIES[PIPELINES[found]]) if name not in _IN_ANY]
    said = f"; left out: {shown(', '.join(more))}" if more else ""
    return [f"model_index.json names a {shown(named)}, whose parts are those of {found}: sampled as that{said}"]
