"""Inception-v3 as FID and Inception Score are reported in papers: torch-fidelity's port of the original weights.

The extra ``inception`` installs it.
"""

from __future__ import annotations

from torch import Tensor, nn

from research.metrics.extractors.base import Features, state_sha256
from research.metrics.extractors.find import INCEPTION

DIMENSION = 2048
_PREPROCESS = "299x299, bilinear, antialiased (torchmetrics)"


class InceptionFeatures(Features):
    """The pool features of FID."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.network = _network(device, str(DIMENSION))
        self.device = device
        self.num_features = DIMENSION
        self.provenance = {
            "name": INCEPTION,
            "weights_sha256": state_sha256(self.network),
            "layer": "pool 2048",
            "dimension": DIMENSION,
            "preprocess": _PREPROCESS,
        }

    def embed(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.network(images.to(self.device))
        return vectors


def logits_network(device: str) -> tuple[nn.Module, dict[str, str]]:
    """Logits without bias, as the Inception Score has them: uint8 ``[N, 3, H, W]`` to ``[N, 1008]``; and what they come from."""
    network = _network(device, "logits_unbiased")
    return network, {
        "name": INCEPTION,
        "weights_sha256": state_sha256(network),
        "layer": "softmax of logits_unbiased",
        "preprocess": _PREPROCESS,
    }


def _network(device: str, layer: str) -> nn.Module:
    """uint8 ``[N, 3, H, W]`` of any size to a layer's output ``[N, D]``."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    return NoTrainInceptionV3(name="inception-v3-compat", features_list=[layer]).to(device).eval()
