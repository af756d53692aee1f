"""Scores of people's taste: an aesthetic predictor behind the extra ``aesthetic``, and preference models that are CLIPModels."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.metrics.base import (
    MetricResult,
    check_count,
    check_whole,
    comparable,
    library_versions,
    mean_over_images,
)
from research.metrics.clip import fetch, load_clip, locate_clip

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PACKAGE = "aesthetics_predictor"


class PreferenceScore:
    """``preference``: ``logit scale x cos(image, prompt)`` of a CLIPModel trained on people's choices: PickScore
    (arXiv:2305.01569).

    Differences within a prompt are what counts: the odds that people choose one image over another are their exponential.

    Args:
        model: a directory or a hub id of a CLIPModel; PickScore is 4 GB.
        batch_size: images at a time.
    """

    name = "preference"

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1", batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown model, a bad batch size, or no images."""
        check_whole("metrics.preference.batch_size", self.batch_size)
        locate_clip(self.model, "metrics.preference.model")
        check_count("metrics.preference", n_images)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images against their prompts, one each; if all prompts are empty, a warning and no score."""
        import torch
        from torch.nn.functional import cosine_similarity

        from research.metrics.images import batches

        self.check(n_images=len(images))
        if not any(prompts):
            return MetricResult({}, {"warnings": ["preference: left out, since the images have no prompts"]})
        clip = load_clip(self.model, device=str(device), key="metrics.preference.model")
        seen = torch.cat([clip.embed_images(batch).cpu() for batch in batches(images, self.batch_size)])
        scale = float(clip.model.logit_scale.exp())
        scores = (scale * cosine_similarity(seen.double(), clip.embed_texts(prompts).double())).tolist()
        definition = "logit scale x cos(image, prompt), mean over images"
        made_with = {"weights_sha256": clip.weights_sha256, "preprocess": clip.preprocess.describe()}
        truncated = clip.truncated(prompts)
        info = {
            "definition": definition,
            "model": clip.name,
            **made_with,
            "comparable": comparable(definition, made_with),
            "versions": library_versions("torch", "transformers", "pillow"),
            "warnings": [
                f"preference: {len(truncated)} prompts are longer than {clip.name} sees and were cut"
            ]
            if truncated
            else [],
        }
        return mean_over_images(self.name, scores, info)


class AestheticScore:
    """``aesthetic``: LAION's aesthetic predictor, about 1 to 10, from a CLIP image tower and a head trained on ratings.

    Args:
        model: a directory or a hub id of the package simple-aesthetics-predictor (the extra ``aesthetic``).
        batch_size: images at a time.
    """

    name = "aesthetic"

    def __init__(
        self, model: str = "shunk031/aesthetics-predictor-v1-vit-large-patch14", batch_size: int = 32
    ) -> None:
        self.model, self.batch_size = model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a missing extra, an unknown model, or no images."""
        key = "metrics.aesthetic"
        check_whole(f"{key}.batch_size", self.batch_size)
        if importlib.util.find_spec(_PACKAGE) is None:
            raise ConfigError(
                f"{key}: needs simple-aesthetics-predictor, which is not installed. Install the extra "
                "(pip install 'diffusion-sampling-research[aesthetic]')."
            )
        locate_clip(self.model, f"{key}.model")
        check_count(key, n_images)

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        device: str | torch.device = "cpu",
    ) -> MetricResult:
        """Scores image by image; prompts play no part."""
        import torch

        from research.metrics.images import batches

        self.check(n_images=len(images))
        directory = locate_clip(self.model, "metrics.aesthetic.model")
        local = fetch(self.model, "metrics.aesthetic.model") if directory is None else directory.resolve()
        model, preprocess, made_with = _predictor(local, str(device))
        scores: list[float] = []
        for batch in batches(images, self.batch_size):
            with torch.no_grad():
                found = model(pixel_values=preprocess(batch).to(device)).logits
            scores += found.flatten().double().cpu().tolist()
        definition = "aesthetic predictor, mean over images"
        info = {
            "definition": definition,
            "model": self.model if directory is None else local.name,
            **made_with,
            "comparable": comparable(definition, made_with),
            "versions": library_versions("torch", "transformers", "pillow", "simple-aesthetics-predictor"),
            "warnings": [],
        }
        return mean_over_images(self.name, scores, info)


@lru_cache(maxsize=2)
def _predictor(directory: Path, device: str) -> tuple[Any, Any, dict[str, Any]]:
    import aesthetics_predictor

    from research.hashing import sha256_files
    from research.metrics.features import weight_files
    from research.metrics.images import Preprocess

    if not (weights := weight_files(directory)):
        raise ConfigError(
            f"metrics.aesthetic.model: {directory.name} has no safetensors weights; pickled weights are not read, as they can "
            "run code."
        )
    try:
        model = aesthetics_predictor.AestheticsPredictorV1.from_pretrained(directory, use_safetensors=True)
    except Exception as error:  # transformers raises a dozen kinds for broken folders
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"metrics.aesthetic.model: {directory.name} cannot be read: {line}") from error
    preprocess = Preprocess.from_config(directory / "preprocessor_config.json")
    made_with = {"weights_sha256": sha256_files(weights), "preprocess": preprocess.describe()}
    return model.float().to(device).eval(), preprocess, made_with
