"""The depth estimator of a depth-to-image checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.models.inspect.safe_files import read_json
from research.models.inspect.weights import check_safetensors, loaded_module, weight_files
from research.models.memory import device_of


class DepthEstimator:
    """A `DPTForDepthEstimation` and the image processor that prepares pictures for it.

    Args:
        network: the estimator.
        processor: its image processor.
    """

    def __init__(self, network: Any, processor: Any):
        self.network = network
        self.processor = processor

    @classmethod
    def load(cls, directory: Path, *, dtype: torch.dtype, safe: bool | None) -> DepthEstimator | None:
        """The estimator of a diffusers directory, or None where ``model_index.json`` names none."""
        index = read_json(directory / "model_index.json")
        if (index.get("depth_estimator") or [None])[0] is None:
            return None
        from transformers import DPTForDepthEstimation, DPTImageProcessor

        for file in weight_files(directory / "depth_estimator", allow_pickle=safe is None)[0]:
            if file.suffix == ".safetensors":
                check_safetensors(file)
        loaded: Any = DPTForDepthEstimation.from_pretrained(
            directory,
            subfolder="depth_estimator",
            dtype=dtype,
            use_safetensors=safe,
            local_files_only=True,
            output_loading_info=True,
        )
        processor = DPTImageProcessor.from_pretrained(directory, subfolder="feature_extractor", local_files_only=True)
        return cls(loaded_module(loaded, directory / "depth_estimator"), processor)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Any]) -> Tensor:
        """Relative depth [N, h, w] of pictures, larger is nearer (or farther: the model's own sense), in no fixed range.

        Batch norm in some estimators has no half-precision kernel, hence autocast there, as in the pipeline.
        """
        network = self.network
        pixels = self.processor(images=list(pictures), return_tensors="pt").pixel_values
        half = network.dtype in (torch.float16, torch.bfloat16) and device_of(network).type != "mps"
        cast = torch.autocast(device_of(network).type, dtype=network.dtype) if half else contextlib.nullcontext()
        with cast:
            return network(pixels.to(device_of(network), network.dtype)).predicted_depth
