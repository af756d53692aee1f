"""Feature extractors for set metrics: images in, one vector an image out, with a record of what made it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from research.metrics.clip import Clip, load_clip
from research.metrics.images import to_uint8
from research.metrics.inception import DIMENSION, INCEPTION, check_inception, inception_network


class Features(nn.Module):
    """Maps uint8 images ``[N, 3, H, W]`` (or floats in [0, 1]) to float32 ``[N, D]`` on the images' device.

    Attributes:
        num_features: D, the length of a feature vector (the attribute that torchmetrics asks for).
        provenance: ``name``, ``weights_sha256``, ``layer``, ``dimension``, ``preprocess``; plain JSON values.
    """

    num_features: int
    provenance: dict[str, Any]


class ClipFeatures(Features):
    """The projected, unnormalised embedding of a CLIP image tower."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.num_features = clip.dimension
        self.provenance = {
            "name": clip.name,
            "weights_sha256": clip.weights_sha256,
            "layer": "image_embeds",
            "dimension": clip.dimension,
            "preprocess": clip.preprocess.describe(),
        }

    def forward(self, images: Tensor) -> Tensor:
        """An image gives the same vector in batches of any size, to within 1e-4 of its norm."""
        return self.clip.embed_images(images)


class InceptionFeatures(Features):
    """Inception-v3 pool features as FID papers use them, from torch-fidelity's port of the original weights."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.network = inception_network(device)
        self.device = device
        self.num_features = DIMENSION
        self.provenance = {
            "name": INCEPTION,
            "weights_sha256": _state_sha256(self.network),
            "layer": "pool 2048",
            "dimension": DIMENSION,
            "preprocess": "299x299, bilinear, antialiased (torchmetrics)",
        }

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(to_uint8(images).to(self.device)).to(images.device)


def load_features(
    name_or_path: str, *, device: str | torch.device = "cpu", key: str = "metrics.fid.features"
) -> Features:
    """A feature extractor: uint8 images ``[N, 3, H, W]`` to float features ``[N, D]``.

    Args:
        name_or_path: a zoo name, a directory or a hub id of a CLIPModel, or ``inception``; local ones need no
            network.
        device: where the network runs; features come back on the images' device.
        key: the config key named in errors.

    Returns:
        A module in eval mode with ``num_features`` (int) and ``provenance`` (dict), see `Features`.

    Raises:
        ConfigError: not found, not readable, or an extra is not installed.
    """
    if name_or_path == INCEPTION:
        check_inception(key)
        return _inception(str(device))
    return _clip(load_clip(name_or_path, device=str(device), key=key))


# one module for each network, so that what is cached by it (a directory's statistics) is found again
@lru_cache(maxsize=2)
def _inception(device: str) -> Features:
    return InceptionFeatures(device)


@lru_cache(maxsize=8)
def _clip(clip: Clip) -> Features:
    return ClipFeatures(clip).eval()


def _state_sha256(module: nn.Module) -> str:
    # the weight file's place depends on torch-fidelity's cache, so the tensors themselves are hashed
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
