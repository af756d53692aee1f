"""`load_model`: a checkpoint by zoo name, directory or hub id, ready for the loop."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch

from research.errors import ConfigError, ModelError, nearest
from research.models.base import BaseModel
from research.models.locate import FAMILIES, locate, pipeline_class

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    allow_pickle: bool = False,
    offline: bool | None = None,
    attention_slicing: str | int | None = None,
) -> BaseModel:
    """Load a model.

    Args:
        path: a zoo name ("emoji"), a directory in diffusers layout, or a hub id ("owner/name").
        dtype: "float32", "float16" / "fp16", "bfloat16" / "bf16", a torch dtype, or "auto": float16 on a GPU, float32 on a CPU.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": a GPU where there is one.
        allow_pickle: read pickled weights (.bin) where there are no safetensors. They can run code: only if you trust them.
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.
        attention_slicing: None, "auto", "max" or a slice size: less memory for attention at some cost in speed.

    Raises:
        ModelError: the model cannot be found, is broken, is pickled, or is of a family that is not supported.
        ConfigError: dtype, device or attention_slicing is not one of the accepted.
    """
    torch_dtype, torch_device = resolve_dtype_and_device(dtype, device)
    found = locate(path)
    directory = found.directory or _fetch(str(found.hub_id), allow_pickle=allow_pickle, offline=offline)
    module, _, name = FAMILIES[pipeline_class(directory)].partition(":")
    family: type[BaseModel] = getattr(importlib.import_module(module), name)
    model = family.from_directory(
        directory, path=os.fspath(path), dtype=torch_dtype, allow_pickle=allow_pickle
    )
    model.to(torch_device)
    if attention_slicing is not None:
        model.set_attention_slicing(attention_slicing)
    return model


def resolve_dtype_and_device(
    dtype: str | torch.dtype, device: str | torch.device
) -> tuple[torch.dtype, torch.device]:
    """What "auto" stands for on this machine.

    Raises:
        ConfigError: an unknown name, or a device that is not there.
    """
    if isinstance(device, torch.device):
        chosen = device
    elif device == "auto":
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"model.device: found {device!r}; accepted: auto, cpu, cuda, cuda:N, mps."
            ) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"model.device: found {device!r}; accepted: auto, cpu, cuda, cuda:N, mps.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"model.device: found {device!r}; this machine has {torch.cuda.device_count()} CUDA devices."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"model.device: found {device!r}; this machine has no MPS device.")
    if isinstance(dtype, torch.dtype) and dtype in (*DTYPES.values(), torch.float64):
        return dtype, chosen
    if dtype == "auto":
        return (torch.float16 if chosen.type == "cuda" else torch.float32), chosen
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ConfigError(
            f"model.dtype: found {dtype!r}.{nearest(str(dtype), DTYPES)} Accepted: auto, {', '.join(DTYPES)}."
        )
    if DTYPES[dtype] is torch.bfloat16 and chosen.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f"model.dtype: found {dtype!r}; this GPU has no bfloat16, accepted: auto, float32, float16."
        )
    return DTYPES[dtype], chosen


def _fetch(hub_id: str, *, allow_pickle: bool, offline: bool | None) -> Path:
    """The local copy of a hub model, fetched if need be: only what the families read, and no pickles unless allowed."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
    endings = ("json", "txt", "safetensors", "model", *(("bin",) if allow_pickle else ()))
    patterns = ["model_index.json", *(f"{part}/*.{ending}" for part in parts for ending in endings)]
    local_only = constants.HF_HUB_OFFLINE if offline is None else offline
    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=patterns,
                ignore_patterns=["*.fp16.*", "*.non_ema.*"],
                local_files_only=local_only,
                etag_timeout=10,
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "offline mode is on" if local_only else "the hub cannot be reached"
        raise ModelError(
            f"model.path: no directory {hub_id!r}, and as a hub id it cannot be fetched: it is not in the cache and {why}."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model.path: hub model {hub_id!r} cannot be fetched: {str(error).splitlines()[0]}"
        ) from error
