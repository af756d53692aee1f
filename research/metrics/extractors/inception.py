"""Inception-v3 as FID and Inception Score are reported in papers: torch-fidelity's port of the original weights (the graph of
2015-12-05), and its resize to 299 pixels, which is that of TensorFlow 1.

That resize takes pixel ``i`` of the result from ``i * size / 299`` of the picture, not from where the centres of pixels lie, and
of large pictures it leaves pixels out. ``inception-antialiased`` is the same network behind an antialiased resize, which
torchmetrics has by default: another number.

The extra ``inception`` installs it.
"""

from __future__ import annotations

from torch import Tensor, nn

from research.metrics.extractors.base import Features, state_sha256
from research.metrics.extractors.find import INCEPTION, INCEPTION_ANTIALIASED

DIMENSION = 2048
_PREPROCESS = {
    INCEPTION: "299x299, bilinear as in TensorFlow 1 (torch-fidelity)",
    INCEPTION_ANTIALIASED: "299x299, bilinear, antialiased (torchmetrics)",
}


class InceptionFeatures(Features):
    """The pool features of FID.

    Args:
        name: ``inception`` or ``inception-antialiased``.
    """

    def __init__(self, device: str, name: str = INCEPTION) -> None:
        super().__init__()
        self.network = _network(device, str(DIMENSION), name)
        self.device = device
        self.num_features = DIMENSION
        self.provenance = {
            "name": name,
            "weights_sha256": state_sha256(self.network),
            "layer": "pool 2048",
            "dimension": DIMENSION,
            "preprocess": _PREPROCESS[name],
        }

    def embed(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.network(images.to(self.device))
        return vectors


def logits_network(device: str) -> tuple[nn.Module, dict[str, str]]:
    """Logits without bias, as the Inception Score has them: uint8 ``[N, 3, H, W]`` to ``[N, 1008]``; and what they come from."""
    network = _network(device, "logits_unbiased", INCEPTION)
    return network, {
        "name": INCEPTION,
        "weights_sha256": state_sha256(network),
        "layer": "softmax of logits_unbiased",
        "preprocess": _PREPROCESS[INCEPTION],
    }


def _network(device: str, layer: str, name: str) -> nn.Module:
    """uint8 ``[N, 3, H, W]`` of any size to a layer's output ``[N, D]``."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=[layer]).to(device).eval()
    network.use_antialias = name == INCEPTION_ANTIALIASED  # torchmetrics' own default; else torch-fidelity's resize
    return network
