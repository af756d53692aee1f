"""Feature extractors for set metrics: images in, one vector an image out, with a record of what made it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research.metrics.extractors.clip import Clip, fetch, load_clip, seen_images
from research.metrics.extractors.efficientnet import EFFICIENTNET, check_efficientnet
from research.metrics.extractors.find import locate_features
from research.metrics.extractors.inception import DIMENSION, INCEPTION, check_inception, inception_network
from research.metrics.feature_checkpoint import remembered
from research.metrics.images import batches, to_uint8

if TYPE_CHECKING:
    from PIL import Image


class Features(nn.Module):
    """Maps uint8 images ``[N, 3, H, W]`` (or floats in [0, 1]) to float32 ``[N, D]`` on the images' device.

    Subclasses write `embed`. What a batch gave is kept for a while, as several metrics look at the same images.

    Attributes:
        num_features: D, the length of a feature vector (the attribute that torchmetrics asks for).
        provenance: ``name``, ``weights_sha256``, ``layer``, ``dimension``, ``preprocess``; plain JSON values.
        device: where the network runs.
    """

    num_features: int
    provenance: dict[str, Any]
    device: str = "cpu"

    def embed(self, images: Tensor) -> Tensor:
        """Vectors [N, D] of uint8 images [N, 3, H, W], without a cache."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """An image gives the same vector in batches of any size, to within 1e-4 of its norm."""
        whole = to_uint8(images).contiguous()

        def made() -> Tensor:
            with torch.no_grad():
                return self.embed(whole).float()

        batch = hashlib.sha256(whole.cpu().numpy().tobytes()).digest()
        key = (self.provenance["weights_sha256"], self.provenance["layer"], self.device, tuple(whole.shape), batch)
        return seen_images.get(key, lambda: remembered(key, made), lambda found: found.nbytes).to(images.device)


class ClipFeatures(Features):
    """The projected, unnormalised embedding of a CLIP image tower."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.device = clip.device
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
        return self.clip.embed_images(images)  # which keeps what it has seen itself, for CLIP score too


class InceptionFeatures(Features):
    """Inception-v3 pool features as FID papers use them, from torch-fidelity's port of the original weights."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.network = inception_network(device)
        self.device = device
        self.num_features = DIMENSION
        self.provenance = {
            "name": INCEPTION,
            "weights_sha256": state_sha256(self.network),
            "layer": "pool 2048",
            "dimension": DIMENSION,
            "preprocess": "299x299, bilinear, antialiased (torchmetrics)",
        }

    def embed(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.device))


def load_features(
    name_or_path: str, *, device: str | torch.device = "cpu", key: str = "metrics.fid.features"
) -> Features:
    """A feature extractor: uint8 images ``[N, 3, H, W]`` to float features ``[N, D]``.

    Args:
        name_or_path: a zoo name, a directory or a hub id of a CLIPModel (projected embedding) or of a vision transformer such as
            DINOv2 (class token); ``inception`` or ``efficientnet``, which come with extras. Local ones need no network.
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
    if name_or_path == EFFICIENTNET:
        check_efficientnet(key)
        return _efficientnet(str(device))
    from research.metrics.extractors.vision import is_clip, load_vision

    directory = locate_features(name_or_path, key)
    local = fetch(name_or_path, key) if directory is None else directory.resolve()
    if is_clip(local, key):
        return _clip(load_clip(name_or_path, device=str(device), key=key))
    # the folder's own name, since records must not carry paths of the machine
    return load_vision(local, name_or_path if directory is None else local.name, str(device), key)


def extract(images: Iterable[Image.Image | Tensor], features: Features, batch_size: int) -> Iterator[Tensor]:
    """Vectors [n, D] in float32 on the CPU, batch by batch in the images' order; memory does not grow with their number."""
    for batch in batches(images, batch_size):
        yield features(batch).float().cpu()


# one module for each network, so that what is cached by it (a directory's statistics) is found again
@lru_cache(maxsize=2)
def _inception(device: str) -> Features:
    return InceptionFeatures(device).eval()


@lru_cache(maxsize=2)
def _efficientnet(device: str) -> Features:
    from research.metrics.extractors.efficientnet import load_network
    from research.metrics.extractors.efficientnet_features import EfficientNetFeatures

    return EfficientNetFeatures(load_network(device), device).eval()


@lru_cache(maxsize=8)
def _clip(clip: Clip) -> Features:
    return ClipFeatures(clip).eval()


def state_sha256(module: nn.Module) -> str:
    """The SHA-256 of a network's tensors, for weights whose file is a library's own affair."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model's directory; other files beside them (half-precision variants) are not read."""
    single = directory / "model.safetensors"
    return [single] if single.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))
