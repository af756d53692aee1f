"""Feature extractors for set metrics: images in, one vector an image out, with a record of what made it."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import ConfigError
from research.metrics.clip import Clip, load_clip
from research.metrics.images import to_uint8

INCEPTION = "inception"


class ClipFeatures(nn.Module):
    """The projected, unnormalised embedding of a CLIP image tower.

    Attributes:
        num_features: D, the length of a feature vector.
        provenance: ``name``, ``weights_sha256``, ``layer``, ``dimension``, ``preprocess``; plain JSON values.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.num_features: int = clip.dimension
        self.provenance: dict[str, Any] = {
            "name": clip.name,
            "weights_sha256": clip.weights_sha256,
            "layer": "image_embeds",
            "dimension": clip.dimension,
            "preprocess": clip.preprocess.describe(),
        }

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` (or float in [0, 1]) to float32 ``[N, D]`` on the images' device.

        The same image in batches of other sizes gives the same vector to within 1e-4 of its norm.
        """
        return self.clip.embed_images(images)


class InceptionFeatures(nn.Module):
    """Inception-v3 pool features (2048) as FID papers use them, from torch-fidelity's port of the original weights."""

    def __init__(self, device: str) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network = (
            NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device).eval()
        )
        self.device = device
        self.num_features: int = 2048
        self.provenance: dict[str, Any] = {
            "name": INCEPTION,
            "weights_sha256": _state_sha256(self.network),
            "layer": "2048",
            "dimension": 2048,
            "preprocess": "299x299, bilinear, antialiased (torchmetrics)",
        }

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` (or float in [0, 1]) to float32 ``[N, 2048]`` on the images' device."""
        with torch.no_grad():
            return self.network(to_uint8(images).to(self.device)).to(images.device)


def load_features(
    name_or_path: str, *, device: str | torch.device = "cpu", key: str = "metrics.fid.features"
) -> nn.Module:
    """A feature extractor: uint8 images ``[N, 3, H, W]`` to float features ``[N, D]``.

    Args:
        name_or_path: a zoo name, a directory or a hub id of a CLIPModel, or ``inception``. Local ones need no network.
        device: where the network runs; features come back on the images' device.
        key: the config key named in errors.

    Returns:
        A module in eval mode with ``num_features`` (int) and ``provenance`` (dict, see `ClipFeatures`).

    Raises:
        ConfigError: not found, not readable, or an extra is not installed.
    """
    if name_or_path == INCEPTION:
        check_inception(key)
        return InceptionFeatures(str(device))
    return ClipFeatures(load_clip(name_or_path, device=str(device), key=key)).eval()


def check_inception(key: str) -> None:
    """Raises ConfigError unless torch-fidelity, which holds the Inception port, is installed."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError(
            f"{key}: 'inception' needs torch-fidelity, which is not installed; install the extra 'inception' "
            "(pip install 'diffusion-sampling-research[inception]'), or name a CLIP model such as 'emoji-eval'."
        )


def _state_sha256(module: nn.Module) -> str:
    # the weight file's place depends on torch-fidelity's cache, so the tensors themselves are hashed
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
