"""CLIP directional similarity: whether an edit changes the picture as its prompt changes the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.checks import check_whole_number
from research.clip import find_clip
from research.errors import ConfigError
from research.metrics.base import JobMetric, MetricResult, check_count, comparable, library_versions, mean_over_images
from research.metrics.job import ScoredJob, needs_image, required_job

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEFINITION = (
    "cos(E(image) - E(input), E(prompt) - E(source prompt)) of normalised CLIP embeddings (arXiv:2108.00946), "
    "mean over images"
)
_KEY = "metrics.clip_directional"


class DirectionalSimilarity(JobMetric):
    """``clip_directional`` (StyleGAN-NADA, arXiv:2108.00946; edits: arXiv:2211.09800): from -1 to 1, more is better.

    Args:
        source_prompt: a sentence for what the input picture shows: one for all images, or a list with one an image.
        model: a zoo name, a directory or a hub id of a CLIPModel.
        batch_size: images at a time.
    """

    name = "clip_directional"

    def __init__(self, source_prompt: str | Sequence[str], model: str = "emoji-eval", batch_size: int = 64) -> None:
        self.source_prompt, self.model, self.batch_size = source_prompt, model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown model, or source prompts that are neither one nor one an image."""
        check_whole_number(f"{_KEY}.batch_size", self.batch_size, least=1)
        find_clip(self.model, f"{_KEY}.model")
        check_count(_KEY, n_images)
        given = [self.source_prompt] if isinstance(self.source_prompt, str) else self.source_prompt
        if not isinstance(given, list | tuple) or not all(isinstance(text, str) and text.strip() for text in given):
            raise ConfigError(
                f"{_KEY}.source_prompt: found {self.source_prompt!r}; accepted is a sentence for what the input shows, "
                "or a list with one an image."
            )
        if len(given) not in (1, n_images):
            raise ConfigError(
                f"{_KEY}.source_prompt: found {len(given)} sentences for {n_images} images; "
                "accepted is one for all, or one an image."
            )

    def check_job(self, config: Mapping[str, Any]) -> None:
        """Raises ConfigError for a task without an input picture, or prompts that say what the source prompt says."""
        needs_image(_KEY, config, "measures the way from the input picture to the image")
        prompts = config.get("prompts") or []
        sources = [self.source_prompt] if isinstance(self.source_prompt, str) else list(self.source_prompt)
        if len(sources) == 1 and sources[0] in prompts:
            raise ConfigError(
                f"{_KEY}.source_prompt: found {sources[0]!r}, which is the prompt of an image too, so that there is no direction "
                "from one to the other; accepted is another sentence."
            )

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        job: ScoredJob | None = None,
    ) -> MetricResult:
        """Scores edits. An image that equals its input has no direction and counts as 0.

        Raises:
            ConfigError: the task has no picture, or a prompt and its source prompt are the same.
        """
        import torch
        from torch.nn.functional import cosine_similarity, normalize

        from research.image_tensors import batches
        from research.metrics.extractors.clip import load_clip_features

        self.check(n_images=len(images))
        job = required_job(_KEY, job)
        self.check_job(job.config)
        given = [self.source_prompt] if isinstance(self.source_prompt, str) else list(self.source_prompt)
        sources = given * len(images) if len(given) == 1 else given
        if same := [p for p, source in zip(prompts, sources, strict=True) if p == source]:
            raise ConfigError(
                f"{_KEY}.source_prompt: found {same[0]!r}, which is the prompt of its image too; accepted is another sentence."
            )
        features = load_clip_features(self.model, device=str(device), key=f"{_KEY}.model")
        clip = features.clip

        def seen(pictures: Sequence[Image.Image]) -> torch.Tensor:
            found = [features(batch) for batch in batches(pictures, self.batch_size)]
            return normalize(torch.cat(found).double().cpu(), dim=1)

        moved = seen(images) - seen(job.inputs(images))
        meant = normalize(clip.embed_texts(list(prompts)).double(), dim=1) - normalize(
            clip.embed_texts(sources).double(), dim=1
        )
        scores = cosine_similarity(moved, meant).tolist()
        unmoved = int((moved.norm(dim=1) == 0).sum())
        made_with = {"weights_sha256": clip.weights_sha256, "preprocess": clip.preprocess.describe()}
        truncated = clip.truncated([*prompts, *given])
        warnings = []
        if unmoved:
            warnings.append(f"{self.name}: {unmoved} images equal their input, and count as 0")
        if truncated:
            warnings.append(f"{self.name}: {len(truncated)} prompts are longer than {clip.name} sees and were cut")
        info = {
            "definition": DEFINITION,
            "model": clip.name,
            **made_with,
            "source_prompts": list(dict.fromkeys(given)),
            "comparable": comparable(DEFINITION, made_with),
            "versions": library_versions("torch", "transformers", "pillow"),
            "warnings": warnings,
        }
        return mean_over_images(self.name, scores, info)
