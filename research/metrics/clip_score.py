"""CLIP score: how well images match their prompts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.checks import check_whole_number
from research.clip import find_clip
from research.errors import ConfigError
from research.metrics.base import Metric, MetricResult, comparable, library_versions

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEFINITION = "100 * max(cos(image, prompt), 0), mean over images"


class CLIPScore(Metric):
    """The mean of ``100 * max(cos(image, prompt), 0)`` over images, and its standard error ``clip_score_se``.

    torchmetrics cuts the mean at 0 and this cuts each image's score, as the paper defines it: the two differ
    only where an image has a negative cosine. The standard error is left out for a single image.

    Args:
        model: a zoo name, a directory or a hub id of a CLIPModel.
        batch_size: images at a time; scores agree across batch sizes to 1e-3.
    """

    name = "clip_score"
    needs_prompts = True

    def __init__(self, model: str = "emoji-eval", batch_size: int = 64) -> None:
        self.model = model
        self.batch_size = batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown model, a bad batch size, or no images."""
        check_whole_number("metrics.clip_score.batch_size", self.batch_size, least=1)
        find_clip(self.model, "metrics.clip_score.model")
        if n_images < 1:
            raise ConfigError(f"metrics.clip_score: found {n_images} images; accepted is at least 1.")

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images against their prompts, one each; if all prompts are empty, a warning and no score."""
        self.check(n_images=len(images))
        if len(prompts) != len(images):
            raise ConfigError(
                f"metrics.clip_score: found {len(images)} images and {len(prompts)} prompts; "
                "accepted is one prompt an image."
            )
        if not any(prompts):
            return MetricResult({}, {"warnings": ["clip_score: left out, since the images have no prompts"]})
        import torch

        from research.image_tensors import batches
        from research.metrics.extractors.clip import load_clip_features

        features = load_clip_features(self.model, device=str(device))
        clip = features.clip
        embedded = torch.cat([features(batch) for batch in batches(images, self.batch_size)])
        cosine = torch.nn.functional.cosine_similarity(embedded.double(), clip.embed_texts(prompts).double())
        scores = (100 * cosine.clamp(min=0)).tolist()
        values = {"clip_score": statistics.fmean(scores)}
        if len(scores) > 1:
            values["clip_score_se"] = statistics.stdev(scores) / math.sqrt(len(scores))
        made_with = {"weights_sha256": clip.weights_sha256, "preprocess": clip.preprocess.describe()}
        truncated = clip.truncated(prompts)
        warnings = []
        if truncated:
            warnings.append(
                f"clip_score: {len(truncated)} of {len(set(prompts))} prompts are longer than the "
                f"{clip.max_tokens} tokens that {clip.name} sees and were cut"
            )
        info = {
            "definition": DEFINITION,
            "model": clip.name,
            **made_with,
            "comparable": comparable(DEFINITION, made_with),
            "n_images": len(scores),
            "n_prompts": len(set(prompts)),
            "truncated_prompts": len(truncated),
            "per_image": [round(score, 4) for score in scores],
            "versions": library_versions("torch", "transformers", "pillow"),
            "warnings": warnings,
        }
        return MetricResult(values, info)
