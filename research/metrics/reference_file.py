"""The file of reference statistics: safetensors whose metadata says what made them, sealed by a hash of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.hashing import sha256_files

if TYPE_CHECKING:
    from research.metrics.reference import Reference

FORMAT = 2
_METADATA = "reference"


def encode(reference: Reference, data: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The file's content, and what it says of itself: ``num_samples``, ``features``, ``data``, ``seal``."""
    from safetensors.torch import save

    tensors = {
        "feature_sum": reference.feature_sum.contiguous(),
        "feature_outer_sum": reference.feature_outer_sum.contiguous(),
        "num_samples": torch.tensor([reference.num_samples], dtype=torch.int64),
    }
    if reference.vectors is not None:
        tensors["features"] = reference.vectors.to(torch.float16).contiguous()
    told = {
        "format": FORMAT,
        "num_samples": reference.num_samples,
        "num_vectors": 0 if reference.vectors is None else len(reference.vectors),
        "features": reference.features,
        "data": data,
    }
    told["seal"] = _seal(tensors, told)
    return save(tensors, {_METADATA: json.dumps(told, ensure_ascii=False)}), told


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, what the file says of itself, and the SHA-256 of the file.

    Raises:
        ConfigError: it cannot be read, holds no statistics, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path.name} is damaged, or no file of statistics: {error}") from error
    sha256 = sha256_files([path])
    try:
        told = json.loads(metadata[_METADATA]) if _METADATA in metadata else _sidecar(path, sha256, key)
    except ValueError as error:
        raise ConfigError(f"{key}: {path.name} is damaged: what it says of itself cannot be read.") from error
    if missing := {"feature_sum", "feature_outer_sum", "num_samples"} - tensors.keys():
        raise ConfigError(f"{key}: {path.name} holds no reference statistics: {sorted(missing)[0]} is missing.")
    if _METADATA in metadata and (found := _seal(tensors, told)) != told.get("seal"):
        raise ConfigError(
            f"{key}: {path.name} is damaged: the sha256 of what it holds is {found[:12]}, it says {str(told.get('seal'))[:12]}."
        )
    if not isinstance(told.get("features"), dict):
        raise ConfigError(f"{key}: {path.name} does not say which features it is of.")
    return tensors, told, sha256


def _seal(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> str:
    """SHA-256 over what the file says of itself, and over names and contents of its tensors."""
    rest = {name: value for name, value in told.items() if name != "seal"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode())
    for name, tensor in sorted(tensors.items()):
        shape = f"{tensor.dtype}{list(tensor.shape)}"
        digest.update(f"{name}\0{shape}\0".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sidecar(path: Path, sha256: str, key: str) -> dict[str, Any]:
    """What a file of the first format has beside it."""
    beside = path.with_suffix(".json")
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        claimed, _ = told["sha256"], dict(told["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{key}: {path.name} says nothing of what it was made from, and {beside.name} beside it does not either; "
            "build it with research-reference."
        ) from error
    if sha256 != claimed:
        raise ConfigError(
            f"{key}: {path.name} is damaged or was replaced: its sha256 is {sha256[:12]}, "
            f"{beside.name} says {str(claimed)[:12]}."
        )
    return dict(told)
