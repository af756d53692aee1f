"""Ids of the hub's models, and what the hub's cache on this disk holds of them. Needs no torch and no network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = r"[A-Za-z0-9][\w.\-]*"
_ID = re.compile(rf"(?P<name>{_NAME}/{_NAME})(?:@(?P<revision>[\w.\-/]+))?")
_URL = re.compile(
    rf"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?P<name>{_NAME}/{_NAME})"
    r"(?:@(?P<at>[\w.\-]+)|/(?:tree|blob)/(?P<revision>[\w.\-]+))?/?"
)
_FOLDER = re.compile(rf"models--(?P<owner>{_NAME}?)--(?P<name>{_NAME})")


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, and which revision of it (a branch, a tag or a commit; None: the newest of the main branch)."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def hub_id(text: str) -> HubId | None:
    """What "owner/name", "owner/name@revision", the address of a model's page, or "models--owner--name" mean; None for others."""
    if match := _ID.fullmatch(text):
        return HubId(match["name"], match["revision"])
    if match := _URL.fullmatch(text):
        return HubId(match["name"], match["at"] or match["revision"])
    if match := _FOLDER.fullmatch(text):
        return HubId(f"{match['owner']}/{match['name']}")
    return None


def repository_folder(path: Path) -> Path | None:
    """The folder in which the hub's cache keeps a repository, if a path is that folder or that of its snapshots."""
    folder = path.parent if path.name == "snapshots" else path
    kept = folder.name.startswith("models--") and (folder / "snapshots").is_dir()
    return folder if kept and not (folder / "model_index.json").exists() else None


def cached_snapshot(of: HubId, files: tuple[str, ...]) -> Path | None:
    """The folder of a repository's snapshot in the cache, if it holds one of some files. Whether it is whole is not asked:
    what is needed of it is for whom it is needed."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in files:
        try:
            found = try_to_load_from_cache(of.name, file, revision=of.revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parents[file.count("/")]
    return None


def commit_of(directory: Path) -> str | None:
    """The commit that a folder of the hub's cache holds, or None for another folder."""
    for folder in (directory, *directory.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder.name
    return None


def hub_name(directory: Path) -> str:
    """The hub id of a folder of the hub's cache, as its path says it; of another folder its path."""
    for folder in directory.parents:
        if match := _FOLDER.fullmatch(folder.name):
            return f"{match['owner']}/{match['name']}"
    return str(directory)
