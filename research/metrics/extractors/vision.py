"""Vision transformers of transformers as feature extractors: DINOv2 and its kin, by their class token."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from research.clip import no_progress_bar, transformers_weights
from research.errors import ConfigError
from research.files import stamp
from research.hashing import sha256_files
from research.image_tensors import Preprocess
from research.lazy import gc_paused
from research.metrics.extractors.base import Features

# those whose last hidden state begins with a class token
CLASS_TOKEN = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "deit", "beit")


class VisionFeatures(Features):
    """The class token after the last layer's norm, as Fréchet distances on DINOv2 use it (arXiv:2306.04675)."""

    def __init__(self, model: Any, name: str, weights_sha256: str, preprocess: Preprocess, device: str) -> None:
        super().__init__()
        self.model, self.preprocess, self.device = model, preprocess, device
        self.config_sha256 = hashlib.sha256(model.config.to_json_string().encode()).hexdigest()
        self.num_features = int(model.config.hidden_size)
        self.provenance = {
            "name": name,
            "weights_sha256": weights_sha256,
            "layer": "class token of the last hidden state",
            "dimension": self.num_features,
            "preprocess": preprocess.describe(),
        }

    def embed(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images).to(self.device)
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


def is_clip(directory: Path, key: str) -> bool:
    """Whether a directory holds a CLIPModel; else it is a vision transformer.

    Raises:
        ConfigError: it is neither.
    """
    try:
        kind = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {directory.name} has no config.json that can be read: {error}") from error
    if kind != "clip" and kind not in CLASS_TOKEN:
        raise ConfigError(
            f"{key}: {directory.name} is a model of type {kind!r}; accepted are clip and {', '.join(CLASS_TOKEN)}."
        )
    return kind == "clip"


def load_vision(directory: Path, name: str, device: str, key: str) -> Features:
    """A vision transformer from a directory in transformers layout, always in float32; read once a process.

    Raises:
        ConfigError: no safetensors weights, no preprocessor_config.json, or transformers cannot read it.
    """
    return _load(directory, name, device, key, stamp(directory))


@lru_cache(maxsize=4)
def _load(directory: Path, name: str, device: str, key: str, _: object) -> Features:
    from transformers import AutoModel

    weights = transformers_weights(directory, name, key)
    preprocess = Preprocess.from_config(directory / "preprocessor_config.json")
    try:
        with gc_paused(), no_progress_bar():
            model = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise a dozen kinds for broken folders
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{key}: {name} cannot be read as a vision transformer: {line}") from error
    model = model.float().to(device).eval().requires_grad_(False)
    return VisionFeatures(model, name, sha256_files(weights), preprocess, device).eval()
