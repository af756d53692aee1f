"""Models of the hub: what is fetched of them, and what can be said of them before their weights are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from research.errors import ModelError
from research.models.inspect.families import FAMILIES, PARTS
from research.models.inspect.find_model import read_index
from research.models.inspect.kinds import Kind
from research.models.inspect.parts import (
    WEIGHTED,
    Component,
    choose_variant,
    config_problems,
    entry_of,
    index_problems,
    wanted_parts,
)
from research.models.inspect.safe_files import read_json, shown
from research.models.inspect.weights import TensorInfo, variants, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import SafetensorsFileMetadata

Answer = TypeVar("Answer")
_SMALL = ("json", "txt", "model")
# where the configs are of what a single file does not say of itself: (2.x, input channels) -> hub id
_CONFIGS = {
    (False, 4): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (False, 9): "stable-diffusion-v1-5/stable-diffusion-inpainting",
    (True, 4): "stabilityai/stable-diffusion-2",
    (True, 5): "stabilityai/stable-diffusion-2-depth",
    (True, 9): "stabilityai/stable-diffusion-2-inpainting",
}


def fetch(hub_id: str, *, allow_pickle: bool, offline: bool | None) -> Path:
    """The local copy of a hub model, fetched if need be: only what the families read, and no pickles unless allowed.

    Raises:
        ModelError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    endings = (*_SMALL, "safetensors", *(("bin",) if allow_pickle else ()))
    patterns = ["model_index.json", *(f"{part}/*.{ending}" for part in PARTS for ending in endings)]

    def download(local_only: bool) -> Path:
        # plain files first: a repository with an fp16 variant beside them has everything twice
        for unwanted in (["*.fp16.*", "*.non_ema.*"], ["*.non_ema.*"]):
            folder = Path(
                snapshot_download(
                    hub_id,
                    allow_patterns=patterns,
                    ignore_patterns=unwanted,
                    local_files_only=local_only,
                    etag_timeout=10,
                )
            )
            if _has_weights(folder):
                break
        return folder

    return asked(hub_id, offline, download)


def _has_weights(folder: Path) -> bool:
    parts = [folder / part for part in WEIGHTED if (folder / part).is_dir()]
    return bool(parts) and all(variants(part) or variants(part, pickled=True) for part in parts)


def fetch_configs(file: Path, kind: Kind, *, offline: bool | None) -> Path:
    """The configs, tokenizer and scheduler of the hub model that a single-file checkpoint is a kind of.

    Raises:
        ModelError: they cannot be had; a directory has to be given.
    """
    from huggingface_hub import snapshot_download

    hub_id = _CONFIGS.get(("2.x" in kind.what, kind.in_channels or 4))
    advice = (
        f"model.path: {file} is {kind.what}, whose configs and tokenizer stand in no such file; give a diffusers directory of "
        "the same kind as model.config (--config DIR)."
    )
    if hub_id is None:
        raise ModelError(advice)
    try:
        return asked(
            hub_id,
            offline,
            lambda local_only: Path(
                snapshot_download(
                    hub_id,
                    allow_patterns=["model_index.json", *(f"{part}/*.{e}" for part in PARTS for e in _SMALL)],
                    local_files_only=local_only,
                    etag_timeout=10,
                )
            ),
        )
    except ModelError as error:
        why = str(error).rpartition(": ")[2]
        raise ModelError(f"{advice} The hub's {hub_id} cannot be used: {why}") from error


def is_offline(offline: bool | None) -> bool:
    """What ``offline=None`` stands for."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) if offline is None else offline


def asked(hub_id: str, offline: bool | None, ask: Callable[[bool], Answer]) -> Answer:
    """The answer of a question to the hub, given whether it may use the network.

    Raises:
        ModelError: offline, no network, or no such model.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    local_only = is_offline(offline)
    try:
        return ask(local_only)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "offline mode is on" if local_only else "the hub cannot be reached"
        raise ModelError(
            f"model.path: no directory {hub_id!r}, and as a hub id it cannot be fetched: it is not in the cache and {why}."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model.path: hub model {hub_id!r} cannot be fetched: {shown(lines[0])}") from error


def cached_snapshot(hub_id: str) -> Path | None:
    """The local copy of a hub model, if all of what ``model_index.json`` needs may be there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(hub_id, "model_index.json")
    except HFValidationError as error:
        raise ModelError(f"model.path: {hub_id!r} is no hub id: {shown(error)}") from error
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    networks = [folder / family.network for family in FAMILIES.values()]
    return folder if any(variants(part) or variants(part, pickled=True) for part in networks) else None


def remote_parts(hub_id: str, *, offline: bool | None) -> tuple[Path, list[Component]]:
    """The parts of a hub model from its small files, which are fetched, and from the headers of its weights, which are not.

    Raises:
        ModelError: offline, no network, or no diffusers model.
    """
    from huggingface_hub import HfApi, snapshot_download

    if is_offline(offline):
        raise ModelError(
            f"model.path: no directory {hub_id!r}, and as a hub id it cannot be looked at: it is not in the cache and offline "
            "mode is on."
        )
    patterns = ["model_index.json", *(f"*/*.{ending}" for ending in _SMALL)]
    api = HfApi()
    directory = asked(
        hub_id, False, lambda _: Path(snapshot_download(hub_id, allow_patterns=patterns, etag_timeout=10))
    )
    listed = asked(hub_id, False, lambda _: api.model_info(hub_id).siblings) or []
    parts = _listed_parts(directory, [entry.rfilename for entry in listed])
    for part in parts:
        for file in part.files if part.safe else ():
            header = asked(hub_id, False, partial(_header, api, hub_id, f"{part.name}/{file.name}"))
            for key, tensor in header.tensors.items():
                start, end = tensor.data_offsets
                part.tensors[key] = TensorInfo(tensor.dtype, tuple(tensor.shape), start, end - start)
    return directory, parts


def _header(api: HfApi, hub_id: str, name: str, _: bool) -> SafetensorsFileMetadata:
    return api.parse_safetensors_file_metadata(hub_id, name)


def _listed_parts(directory: Path, names: list[str]) -> list[Component]:
    """The parts of a model whose small files are here, and whose weights are names in a list."""
    index = read_index(directory)
    wanted = wanted_parts(index)
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        for name in names:
            folder, _, file = name.partition("/")
            if folder in wanted and file and "/" not in file:
                Path(scratch, folder).mkdir(exist_ok=True)
                Path(scratch, folder, file).touch()
                if (directory / name).is_file() and name.endswith(".json"):
                    Path(scratch, folder, file).write_bytes((directory / name).read_bytes())
        weighted = [name for name in wanted if name in WEIGHTED and Path(scratch, name).is_dir()]
        variant = choose_variant(Path(scratch), weighted)
        parts = []
        for name, classes in wanted.items():
            library, class_name = entry_of(index.get(name))
            part = Component(name, library, class_name, directory / name, True, variant=variant)
            part.problems += index_problems(directory, name, index.get(name), classes)
            parts.append(part)
            if name not in weighted or part.problems:
                continue
            try:
                part.config = read_json(directory / name / "config.json")
                part.problems += config_problems(directory / name / "config.json", part.config, class_name)
                part.files, part.safe = weight_files(Path(scratch, name), allow_pickle=True, variant=variant)
            except ModelError as error:
                part.problems.append(str(error).replace(scratch, hub_name(directory)))
                continue
            try:
                weight_files(Path(scratch, name), allow_pickle=False, variant=variant)
            except ModelError as refusal:
                part.pickle_refusal = str(refusal).replace(scratch, hub_name(directory))
    return parts


def hub_name(snapshot: Path) -> str:
    """The hub id of a folder of the hub's cache, as its path says it."""
    names = [parent.name for parent in snapshot.parents if parent.name.startswith("models--")]
    return names[0].removeprefix("models--").replace("--", "/") if names else str(snapshot)
