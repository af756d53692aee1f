"""The image tower of a CLIP model as a feature extractor, and with its texts for scores of pictures against sentences."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from research.clip import Clip, load_clip
from research.metrics.extractors.base import Features


class ClipFeatures(Features):
    """The projected, unnormalised embedding of a CLIP image tower; ``clip`` embeds texts in the same space."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.device, self.config_sha256 = clip.device, clip.files_sha256
        self.num_features = clip.dimension
        self.provenance = {
            "name": clip.name,
            "weights_sha256": clip.weights_sha256,
            "layer": "image_embeds",
            "dimension": clip.dimension,
            "preprocess": clip.preprocess.describe(),
        }

    def embed(self, images: Tensor) -> Tensor:
        return self.clip.embed_images(images)


def load_clip_features(name: str, *, device: str = "cpu", key: str = "metrics.clip_score.model") -> ClipFeatures:
    """The image tower of a CLIP model; see `research.clip.load_clip` for names and errors."""
    return _features(load_clip(name, device=device, key=key))


@lru_cache(maxsize=8)  # one module a network, so that what is cached by it (a directory's statistics) is found again
def _features(clip: Clip) -> ClipFeatures:
    return ClipFeatures(clip).eval()
