"""Inception-v3 features, as FID is reported in papers. They come with the extra ``inception``."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

INCEPTION = "inception"
DIMENSION = 2048


def check_inception(key: str) -> None:
    """Raises ConfigError unless torch-fidelity, which holds the Inception port, is installed."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError(
            f"{key}: 'inception' needs torch-fidelity, which is not installed. Install the extra "
            "(pip install 'diffusion-sampling-research[inception]') or name a CLIP model such as 'emoji-eval'."
        )


def inception_network(device: str) -> nn.Module:
    """The original weights: uint8 ``[N, 3, H, W]`` of any size to ``[N, 2048]``."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    return NoTrainInceptionV3(name="inception-v3-compat", features_list=[str(DIMENSION)]).to(device).eval()


def logits_network(device: str) -> tuple[nn.Module, dict[str, Any]]:
    """Logits without bias, as the Inception Score has them: uint8 ``[N, 3, H, W]`` to ``[N, 1008]``; and what they come from."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    from research.metrics.extractors.base import state_sha256

    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["logits_unbiased"]).to(device).eval()
    made_with = {
        "name": INCEPTION,
        "weights_sha256": state_sha256(network),
        "layer": "softmax of logits_unbiased",
        "preprocess": "299x299, bilinear, antialiased (torchmetrics)",
    }
    return network, made_with
