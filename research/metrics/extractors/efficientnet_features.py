"""What EfficientNet-Lite0 says of images: pooled features, class probabilities, and the features along its depth."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from research.metrics.extractors.base import Features, state_sha256
from research.metrics.extractors.efficientnet import EFFICIENTNET
from research.metrics.images import Preprocess

SIZE = 224
# the Lite networks were trained on (value - 127) / 128
PREPROCESS = Preprocess(
    size=(SIZE, SIZE), mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resample=int(Image.Resampling.BICUBIC)
)


class EfficientNetFeatures(Features):
    """The 1280 features before the classifier."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.device = network, device
        self.num_features = 1280
        self.provenance = {
            "name": EFFICIENTNET,
            "weights_sha256": state_sha256(network),
            "layer": "pool 1280",
            "dimension": self.num_features,
            "preprocess": PREPROCESS.describe(),
        }

    def embed(self, images: Tensor) -> Tensor:
        maps = self.network.extract_features(PREPROCESS(images).to(self.device))  # type: ignore[operator]
        return maps.mean((2, 3))

    def probabilities(self, images: Tensor) -> Tensor:
        """Of the 1000 classes of ImageNet, [N, 1000], for uint8 images [N, 3, H, W]."""
        with torch.no_grad():
            return self.network._fc(self(images).to(self.device)).softmax(-1).cpu()  # type: ignore[operator]
