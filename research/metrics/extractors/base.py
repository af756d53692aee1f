"""The base class of feature extractors: images in, one vector an image out, with a record of what made it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.image_tensors import PreprocessRecord, batches, to_uint8
from research.metrics.feature_checkpoint import from_checkpoint

if TYPE_CHECKING:
    from PIL import Image

seen_images = Cache("image features", 64 * MIB)


class Provenance(TypedDict):
    """What a feature extractor is, as it stands in records; two are the same if all but the name is equal."""

    name: str
    weights_sha256: str
    layer: str
    dimension: int
    preprocess: str | PreprocessRecord


class Features(nn.Module):
    """Maps uint8 images ``[N, 3, H, W]`` (or floats in [0, 1]) to float32 ``[N, D]`` on the images' device.

    Subclasses write `embed`. What a batch gave is kept for a while, as several metrics look at the same images.

    Attributes:
        num_features: D, the length of a feature vector (the attribute that torchmetrics asks for).
        provenance: what made the vectors, for records.
        device: where the network runs.
        config_sha256: of what the network is besides its weights, where these do not say it.
    """

    num_features: int
    provenance: Provenance
    device: str = "cpu"
    config_sha256: str = ""

    def embed(self, images: Tensor) -> Tensor:
        """Vectors [N, D] of uint8 images [N, 3, H, W], without a cache."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """An image gives the same vector in batches of any size, to within 1e-4 of its norm.

        Raises:
            ConfigError: images that are neither uint8 nor float in [0, 1].
        """
        pixels = to_uint8(images).contiguous()

        def embedded() -> Tensor:
            with torch.no_grad():
                return self.embed(pixels).float()

        batch = hashlib.sha256(pixels.cpu().numpy().tobytes()).digest()
        key = (
            self.config_sha256,
            self.provenance["weights_sha256"],
            self.provenance["layer"],
            repr(self.provenance["preprocess"]),
            self.device,
            tuple(pixels.shape),
            batch,
        )
        vectors = seen_images.get(key, lambda: from_checkpoint(key, embedded), lambda made: made.nbytes)
        return vectors.to(images.device)


def extract(images: Iterable[Image.Image | Tensor], features: Features, batch_size: int) -> Iterator[Tensor]:
    """Vectors [n, D] in float32 on the CPU, batch by batch in the images' order; memory does not grow with their number.

    Raises:
        ConfigError: a vector is not finite; the message names the image. One NaN would make a whole set's number one.
    """
    before = 0
    for batch in batches(images, batch_size):
        found = features(batch).float().cpu()
        finite = torch.isfinite(found).all(dim=1)
        if not bool(finite.all()):
            place = before + int((~finite).nonzero()[0])
            raise ConfigError(
                f"metrics: the {features.provenance['name']} features of image {place}, counted from 0, are not finite (NaN or "
                "infinite); accepted are weights that give numbers."
            )
        before += len(found)
        yield found


def state_sha256(module: nn.Module) -> str:
    """The SHA-256 of a network's tensors, for weights whose file is a library's own affair."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
