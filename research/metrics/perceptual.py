"""A perceptual distance between each image and its input picture, on a network that ships with the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.checks import check_whole_number
from research.clip import find_clip, load_clip
from research.metrics.base import JobMetric, MetricResult, check_count, comparable, library_versions, mean_over_images
from research.metrics.job import ScoredJob, needs_image, required_job

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from research.clip import Clip

DEFINITION = (
    "mean over layers and patches of the squared distance between unit token vectors of a CLIP image tower "
    "(LPIPS arXiv:1801.03924, eq. 1 with all weights 1), mean over images"
)
_KEY = "metrics.perceptual"


class PerceptualDistance(JobMetric):
    """``perceptual``: from 0 (equal) to 4, how differently a network sees an image and the picture it was started from.

    It is the distance of LPIPS (arXiv:1801.03924, eq. 1) with equal weights, over the layers of a CLIP image tower in place of
    AlexNet: of the same kind, and not on LPIPS's scale. Compare its numbers with one another.

    Args:
        model: a zoo name, a directory or a hub id of a CLIPModel.
        batch_size: images at a time.
    """

    name = "perceptual"

    def __init__(self, model: str = "emoji-eval", batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for an unknown model, a bad batch size, or no images."""
        check_whole_number(f"{_KEY}.batch_size", self.batch_size, least=1)
        find_clip(self.model, f"{_KEY}.model")
        check_count(_KEY, n_images)

    def check_job(self, config: Mapping[str, Any]) -> None:
        """Raises ConfigError for a task without an input picture."""
        needs_image(_KEY, config)

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        device: str | torch.device = "cpu",
        job: ScoredJob | None = None,
    ) -> MetricResult:
        """Compares image by image; prompts play no part."""
        from research.image_tensors import batches

        self.check(n_images=len(images))
        job = required_job(_KEY, job)
        self.check_job(job.config)
        clip = load_clip(self.model, device=str(device), key=f"{_KEY}.model")
        pairs = zip(batches(images, self.batch_size), batches(job.inputs(images), self.batch_size), strict=True)
        scores = [score for ours, given in pairs for score in distances(clip, ours, given).tolist()]
        made_with = {"weights_sha256": clip.weights_sha256, "preprocess": clip.preprocess.describe()}
        info = {
            "definition": DEFINITION,
            "model": clip.name,
            **made_with,
            "comparable": comparable(DEFINITION, made_with),
            "versions": library_versions("torch", "transformers", "pillow"),
            "warnings": [],
        }
        return mean_over_images(self.name, scores, info)


def distances(clip: Clip, a: Tensor, b: Tensor) -> Tensor:
    """Distances [N] between uint8 images [N, 3, H, W] of two batches, one by one."""
    import torch

    layers = [_layers(clip, images) for images in (a, b)]
    found = [(x - y).square().sum(-1).mean(1) for x, y in zip(*layers, strict=True)]
    return torch.stack(found).mean(0)


def _layers(clip: Clip, images: Tensor) -> list[Tensor]:
    """The patches' vectors after each layer, of unit length, [N, patches, D] in float64."""
    import torch
    from torch.nn.functional import normalize

    pixels = clip.preprocess(images).to(clip.device)
    with torch.no_grad():
        states = clip.model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    # the first is what goes into the first layer; the first token is the class's
    return [normalize(state[:, 1:].double().cpu(), dim=-1) for state in states[1:]]
