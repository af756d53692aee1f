"""Scores of people's taste: preference models that are CLIPModels, and aesthetic heads on one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.checks import check_whole_number
from research.clip import find_clip
from research.errors import ConfigError
from research.hashing import sha256_files
from research.metrics.base import Metric, MetricResult, check_count, comparable, library_versions, mean_over_images

if TYPE_CHECKING:
    import torch
    from PIL import Image


class PreferenceScore(Metric):
    """``preference``: ``logit scale x cos(image, prompt)`` of a CLIPModel trained on people's choices: PickScore
    (arXiv:2305.01569).

    Differences within a prompt are what counts: the odds that people choose one image over another are their exponential.

    Args:
        model: a directory or a hub id of a CLIPModel; PickScore is 4 GB.
        batch_size: images at a time.
    """

    name = "preference"
    needs_prompts = True

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1", batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown model, a bad batch size, or no images."""
        check_whole_number("metrics.preference.batch_size", self.batch_size, least=1)
        find_clip(self.model, "metrics.preference.model")
        check_count("metrics.preference", n_images)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images against their prompts, one each; if all prompts are empty, a warning and no score."""
        import torch
        from torch.nn.functional import cosine_similarity

        from research.image_tensors import batches
        from research.metrics.extractors.clip import load_clip_features

        self.check(n_images=len(images))
        if not any(prompts):
            return MetricResult({}, {"warnings": ["preference: left out, since the images have no prompts"]})
        features = load_clip_features(self.model, device=str(device), key="metrics.preference.model")
        clip = features.clip
        seen = torch.cat([features(batch).cpu() for batch in batches(images, self.batch_size)])
        scale = float(clip.logit_scale)
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
            "warnings": [f"preference: {len(truncated)} prompts are longer than {clip.name} sees and were cut"]
            if truncated
            else [],
        }
        return mean_over_images(self.name, scores, info)


class AestheticScore(Metric):
    """``aesthetic``: LAION's aesthetic predictor, about 1 to 10: a linear head on normalised CLIP embeddings.

    Args:
        head: the head's file: ``weight`` [1, D] and ``bias`` [1], as .safetensors, or as the .pth of LAION's aesthetic-predictor
            (sa_0_4_vit_l_14_linear.pth), which is read as plain tensors.
        model: a zoo name, a directory or a hub id of the CLIPModel that the head was trained on.
        batch_size: images at a time.
    """

    name = "aesthetic"

    def __init__(self, head: str, model: str = "openai/clip-vit-large-patch14", batch_size: int = 32) -> None:
        self.head, self.model, self.batch_size = head, model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a missing head, an unknown model, or no images."""
        key = "metrics.aesthetic"
        check_whole_number(f"{key}.batch_size", self.batch_size, least=1)
        if not isinstance(self.head, str) or not Path(self.head).expanduser().is_file():
            raise ConfigError(
                f"{key}.head: the file {self.head!r} does not exist; accepted is a linear head with weight and bias, as "
                "sa_0_4_vit_l_14_linear.pth of github.com/LAION-AI/aesthetic-predictor."
            )
        find_clip(self.model, f"{key}.model")
        check_count(key, n_images)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores image by image; prompts play no part."""
        import torch
        from torch.nn.functional import normalize

        from research.image_tensors import batches
        from research.metrics.extractors.clip import load_clip_features

        self.check(n_images=len(images))
        features = load_clip_features(self.model, device=str(device), key="metrics.aesthetic.model")
        clip = features.clip
        weight, bias = self._head(clip.dimension)
        seen = torch.cat([features(batch).cpu() for batch in batches(images, self.batch_size)])
        scores = (normalize(seen.double(), dim=1) @ weight + bias).tolist()
        definition = "linear aesthetic head on normalised CLIP embeddings, mean over images"
        made_with = {
            "weights_sha256": clip.weights_sha256,
            "head_sha256": sha256_files([Path(self.head).expanduser()]),
            "preprocess": clip.preprocess.describe(),
        }
        info = {
            "definition": definition,
            "model": clip.name,
            **made_with,
            "comparable": comparable(definition, made_with),
            "versions": library_versions("torch", "transformers", "pillow"),
            "warnings": [],
        }
        return mean_over_images(self.name, scores, info)

    def _head(self, dimension: int) -> tuple[torch.Tensor, float]:
        import torch
        from safetensors.torch import load_file

        file = Path(self.head).expanduser()
        try:
            if file.suffix == ".safetensors":
                found = load_file(file)
            else:  # a pickle, but read as plain tensors and nothing else
                found = torch.load(file, map_location="cpu", weights_only=True)
            weight, bias = found["weight"].double().flatten(), found["bias"].double().flatten()
        except Exception as error:  # a pickle may fail in any way
            raise ConfigError(
                f"metrics.aesthetic.head: {file.name} cannot be read ({type(error).__name__}); "
                "accepted is a file with weight and bias."
            ) from error
        if weight.shape != (dimension,) or bias.shape != (1,):
            raise ConfigError(
                f"metrics.aesthetic.head: {file.name} is for {len(weight)} features, and {self.model} has {dimension}; "
                "accepted is the head of that model."
            )
        return weight, float(bias)
