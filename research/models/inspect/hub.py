"""Models of the hub: what is fetched of them, and what can be said of them before their weights are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from research.errors import ModelError
from research.hub_cache import HubId, cached_snapshot, hub_name
from research.models.inspect.families import PARTS
from research.models.inspect.find_model import Located, read_index
from research.models.inspect.kinds import Kind
from research.models.inspect.parts import (
    WEIGHTED,
    Component,
    choose_variants,
    config_problems,
    entry_of,
    folder_of,
    index_problems,
    is_whole,
    repaired_config,
    scheduler_settings,
    wanted_parts,
)
from research.models.inspect.safe_files import read_json, shown
from research.models.inspect.weights import TensorInfo, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import SafetensorsFileMetadata

Answer = TypeVar("Answer")
_SMALL = ("json", "txt", "model")


def fetch(place: Located, *, allow_pickle: bool, offline: bool | None, variant: str | None = None) -> Path:
    """The local directory of a hub model, fetched if need be: only what the families read, and no pickles unless allowed.

    Without a network it is what the cache holds of it. Whether that is all that its pipeline needs is not asked here.

    Raises:
        ModelError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    assert place.hub is not None
    hub, folder = place.hub, f"{place.subfolder}/" if place.subfolder else ""
    weights = ("safetensors", *(("bin",) if allow_pickle else ()))
    patterns = ["model_index.json", "config.json", "scheduler_config.json"]
    patterns += [
        f"diffusion_pytorch_model*.{ending}" for ending in weights
    ]  # of models whose files lie without folders
    patterns += [f"{part}/*.{ending}" for part in PARTS for ending in (*_SMALL, *weights)]

    def download(local_only: bool) -> Path:
        # plain files first: a repository with an fp16 variant beside them has everything twice
        tries = (["*.fp16.*", "*.non_ema.*"], ["*.non_ema.*"], []) if variant is None else ([],)
        for unwanted in tries:
            snapshot = snapshot_download(
                hub.name,
                revision=hub.revision,
                allow_patterns=[folder + pattern for pattern in patterns],
                ignore_patterns=unwanted,
                local_files_only=local_only,
                etag_timeout=10,
            )
            found = Path(snapshot, place.subfolder or "")
            if (found / "model_index.json").is_file() and is_whole(found):
                break
        return found

    cached = cached_directory(place)
    if cached is not None and is_offline(offline):
        return cached
    try:
        return asked(str(hub), offline, download)
    except ModelError:
        if cached is not None and is_whole(cached, variant):  # the hub cannot be reached, and need not be
            return cached
        raise


def cached_directory(place: Located) -> Path | None:
    """The local directory of a hub model, if the hub's cache has its ``model_index.json``."""
    assert place.hub is not None
    inside = place.subfolder or ""
    snapshot = cached_snapshot(place.hub, (f"{inside}/model_index.json".removeprefix("/"),))
    return None if snapshot is None else snapshot / inside


def local_directory(place: Located, *, offline: bool | None, variant: str | None = None) -> Path | None:
    """The directory that `load_model` will read, as far as that is known before: that of a hub model if its cache holds all that
    is needed; None for one that has to be fetched, and for a single file.

    Raises:
        ModelError: it cannot be fetched, as the network is not to be used.
    """
    if place.hub is None:
        return place.directory
    cached = cached_directory(place)
    if is_offline(offline):
        return fetch(place, allow_pickle=False, offline=True, variant=variant) if cached is None else cached
    return cached if cached is not None and is_whole(cached, variant) else None


def fetch_configs(file: Path, kind: Kind, *, offline: bool | None) -> Path:
    """The configs, tokenizer and scheduler of the hub model that a single-file checkpoint is a kind of.

    Raises:
        ModelError: they cannot be had; a directory has to be given.
    """
    from huggingface_hub import snapshot_download

    checkpoint = kind.checkpoint
    hub_id = checkpoint.hub_id if checkpoint else None
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
        raise ModelError(
            _not_to_be_had(hub_id, "offline mode is on" if local_only else "the hub cannot be reached")
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"model.path: hub model {hub_id!r} cannot be fetched: {shown(lines[0])}") from error


def _not_to_be_had(hub_id: str, why: str) -> str:
    return (
        f"model.path: no directory {hub_id!r}, and as a hub id it cannot be fetched: it is not in the cache and {why}."
    )


def remote_parts(place: Located, *, offline: bool | None, variant: str | None = None) -> tuple[Path, list[Component]]:
    """The parts of a hub model from its small files, which are fetched, and from the headers of its weights, which are not.

    Raises:
        ModelError: offline, no network, or no diffusers model.
    """
    from huggingface_hub import HfApi, snapshot_download

    assert place.hub is not None
    hub, inside = place.hub, f"{place.subfolder}/" if place.subfolder else ""
    if is_offline(offline):
        raise ModelError(_not_to_be_had(str(hub), "offline mode is on"))
    patterns = [inside + name for name in ("model_index.json", "*.json", *(f"*/*.{ending}" for ending in _SMALL))]
    api = HfApi()

    def small(_: bool) -> Path:
        return Path(
            snapshot_download(hub.name, revision=hub.revision, allow_patterns=patterns, etag_timeout=10),
            place.subfolder or "",
        )

    directory = asked(str(hub), False, small)
    listed = asked(str(hub), False, lambda _: api.model_info(hub.name, revision=hub.revision).siblings) or []
    names = [entry.rfilename.removeprefix(inside) for entry in listed if entry.rfilename.startswith(inside)]
    parts = _listed_parts(directory, names, variant)
    for part in parts:
        for file in part.files if part.safe else ():
            name = f"{inside}{'' if part.folder == directory else part.name + '/'}{file.name}"
            header = asked(str(hub), False, partial(_header, api, hub, name))
            for key, tensor in header.tensors.items():
                start, end = tensor.data_offsets
                part.tensors[key] = TensorInfo(tensor.dtype, tuple(tensor.shape), start, end - start)
    return directory, parts


def _header(api: HfApi, hub: HubId, name: str, _: bool) -> SafetensorsFileMetadata:
    return api.parse_safetensors_file_metadata(hub.name, name, revision=hub.revision)


def _listed_parts(directory: Path, names: list[str], variant: str | None) -> list[Component]:
    """The parts of a model whose small files are here, and whose weights are names in a list."""
    index = read_index(directory)
    wanted = wanted_parts(index)
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        root = Path(scratch, "model")
        root.mkdir()
        for name in names:
            folder = name.rpartition("/")[0]
            if folder and folder not in wanted:
                continue
            (root / folder).mkdir(exist_ok=True)
            (root / name).touch()
            if (directory / name).is_file() and name.endswith(".json"):
                (root / name).write_bytes((directory / name).read_bytes())
        weighted = [name for name in wanted if name in WEIGHTED and folder_of(root, name).is_dir()]
        chosen = choose_variants(root, weighted, variant)
        parts = []
        for name, classes in wanted.items():
            library, class_name = entry_of(index.get(name))
            part = Component(name, library, class_name, folder_of(directory, name), True, variant=chosen.get(name, ""))
            part.problems += index_problems(directory, name, index.get(name), classes)
            parts.append(part)
            if name == "scheduler" and not part.problems:
                part.config = scheduler_settings(directory, index)[0]
            if name not in weighted or part.problems:
                continue
            find = partial(weight_files, folder_of(root, name), variant=part.variant, part=name)
            try:
                config = part.folder / "config.json"
                part.config = repaired_config(name, read_json(config), index)[0]
                part.problems += config_problems(config, part.config, class_name)
                part.files, part.safe = find(allow_pickle=True)
            except ModelError as error:
                part.problems.append(str(error).replace(str(root), hub_name(directory)))
                continue
            try:
                find(allow_pickle=False)
            except ModelError as refusal:
                part.pickle_refusal = str(refusal).replace(str(root), hub_name(directory))
    return parts
