"""Models of the hub: what is fetched of them, and what can be said of them before their weights are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect_files import shown
from research.models.inspect_kinds import Kind
from research.models.weights import variants

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor", "depth_estimator")
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
    parts = [folder / part for part in ("unet", "vae", "text_encoder") if (folder / part).is_dir()]
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


def asked(hub_id: str, offline: bool | None, ask: Callable[[bool], Any]) -> Any:
    """The answer of a question to the hub, given whether it may use the network.

    Raises:
        ModelError: offline, no network, or no such model.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

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
