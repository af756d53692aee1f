"""Which LoRA files a config or a caller names: on this disk, or of the hub. Needs no torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from research.checks import check_number
from research.errors import ConfigError, ModelError
from research.models.inspect.hub import asked
from research.models.inspect.weights import read_header

KEY = "model.loras"
_USUAL = "pytorch_lora_weights.safetensors"  # what diffusers' training scripts write
_HUB = re.compile(r"^(?P<id>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)(?:/(?P<name>[\w.\-/ ()]+))?$")
_ACCEPTED = "a .safetensors file, a folder with one, or one of the hub (owner/name or owner/name/FILE)"


@dataclass(frozen=True)
class Lora:
    """A file of low-rank factors, and what they are multiplied by before they are added to the weights."""

    path: Path
    weight: float = 1.0


def read_loras(found: Any, *, offline: bool | None = None) -> tuple[Lora, ...]:
    """LoRAs as a config or a caller names them: mappings of ``path``, ``weight`` and ``weight_name``, or pairs of path and
    weight. None is none. One of the hub is taken from its cache, and fetched if it is not there.

    Args:
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.

    Raises:
        ConfigError: one is neither; a weight is no number; the file is not there, cannot be fetched, or is no LoRA; peft is not
            installed.
    """
    if not found:
        return ()
    if isinstance(found, str | os.PathLike | Mapping) or not isinstance(found, Sequence):
        raise ConfigError(f"{KEY}: found {found!r}; accepted is a list: [{{path: FILE, weight: 0.8}}].")
    loras = tuple(_read(f"{KEY}[{place}]", each, offline) for place, each in enumerate(found))
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"{KEY}: peft is not installed; pip install 'diffusion-sampling-research[lora]' brings it.")
    return loras


def _read(key: str, found: Any, offline: bool | None) -> Lora:
    if isinstance(found, Lora):
        found = {"path": found.path, "weight": found.weight}
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        found = dict(zip(("path", "weight"), found, strict=True))
    if not isinstance(found, Mapping) or "path" not in found or set(found) - {"path", "weight", "weight_name"}:
        raise ConfigError(
            f"{key}: found {found!r}; accepted are path, weight and weight_name (a file in a folder or of the hub): "
            "{path: FILE, weight: 0.8}."
        )
    weight = check_number(f"{key}.weight", found.get("weight", 1.0))
    path, name = found["path"], found.get("weight_name")
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"{key}.path: found {path!r}; accepted is {_ACCEPTED}.")
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"{key}.weight_name: found {name!r}; accepted is the name of a .safetensors file.")
    file = _file(key, os.fspath(path), name, offline)
    try:
        header = read_header(file)
    except ModelError as error:
        raise ConfigError(f"{key}.path: {str(error).removeprefix('model.path: ')}") from error
    if not any("lora" in name for name in header):
        raise ConfigError(f"{key}.path: {file} is no LoRA: none of its {len(header)} tensors is named so.")
    return Lora(file, float(weight))


def _file(key: str, given: str, name: str | None, offline: bool | None) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return _chosen(key, str(path), [str(f.relative_to(path)) for f in path.glob("*.safetensors")], name, path)
    if path.is_file():
        if name not in (None, path.name):
            raise ConfigError(f"{key}.weight_name: found {name!r} with the file {path}; accepted is null.")
        if path.suffix != ".safetensors":
            raise ConfigError(f"{key}.path: {path} may run code when it is read; accepted is a .safetensors file.")
        return path
    found = _HUB.match(given)
    if found is None or (found["name"] is None and given.endswith((".safetensors", ".bin", ".pt", ".ckpt"))):
        raise ConfigError(f"{key}.path: {given} is not there; accepted is {_ACCEPTED}.")
    return _of_hub(key, found["id"], _one_name(key, found["name"], name), offline)


def _one_name(key: str, of_path: str | None, name: str | None) -> str | None:
    if of_path and name and of_path != name:
        raise ConfigError(f"{key}.weight_name: found {name!r}, and {of_path!r} in the path; accepted is one of them.")
    found = of_path or name
    if found and not found.endswith(".safetensors"):
        raise ConfigError(f"{key}.path: {found} may run code when it is read; accepted is a .safetensors file.")
    return found


def _chosen(key: str, where: str, files: Sequence[str], name: str | None, folder: Path) -> Path:
    """The LoRA among the files of a folder, or of a repository."""
    if name is not None:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise ConfigError(f"{key}.weight_name: {where} has no {name}; accepted: {_listed(files)}.")
        if path.suffix != ".safetensors":
            raise ConfigError(f"{key}.weight_name: {path} may run code when it is read; accepted: {_listed(files)}.")
        return path
    return folder / _the_one(key, where, files)


def _the_one(key: str, where: str, files: Sequence[str]) -> str:
    usual = [file for file in files if file == _USUAL] or list(files)
    if len(usual) != 1:
        more = (
            f"; accepted is one of them as {key}.weight_name: {_listed(files)}."
            if files
            else f"; accepted is {_ACCEPTED}."
        )
        raise ConfigError(f"{key}.path: {where} has {len(files)} .safetensors files{more}")
    return usual[0]


def _listed(files: Sequence[str]) -> str:
    shown = sorted(files)[:8]
    return (", ".join(shown) + (", ..." if len(files) > len(shown) else "")) or "none, as there is no .safetensors file"


def _of_hub(key: str, hub_id: str, name: str | None, offline: bool | None) -> Path:
    """A file of the hub: that of the cache, or fetched.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return _fetched(key, hub_id, name, offline)
    except ModelError as error:
        told = str(error).removeprefix("model.path: ")
        raise ConfigError(f"{key}.path: {told.replace('no directory', 'no file or folder', 1)}") from error


@lru_cache(maxsize=256)
def _fetched(key: str, hub_id: str, name: str | None, offline: bool | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def files(local_only: bool) -> list[str]:
        if not local_only:
            return HfApi().list_repo_files(hub_id)
        folder = Path(snapshot_download(hub_id, local_files_only=True))
        return [str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")]

    def download(wanted: str, local_only: bool) -> Path:
        return Path(hf_hub_download(hub_id, wanted, local_files_only=local_only, etag_timeout=10))

    try:  # what is there needs no network
        return download(name or _USUAL, local_only=True)
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise ConfigError(f"{key}.path: {hub_id!r} is no hub id: {error}") from error
    if name is None:
        listed = asked(hub_id, offline, files)
        name = _the_one(key, hub_id, [file for file in listed if file.endswith(".safetensors")])
    wanted = name
    return asked(hub_id, offline, lambda local_only: download(wanted, local_only))
