"""Further input channels for the model: what inpainting and depth-to-image checkpoints see besides the latents."""

from __future__ import annotations

import torch
from torch import Tensor

from research.sampling.interfaces import Hook, StepState


class ExtraChannels(Hook):
    """Puts fixed channels after the latents each time the model looks at them. They are not scaled with the latents.

    Args:
        channels: [N, k, h, w], of the latents' size.
    """

    order = 900  # after hooks that change what the model sees of the latents

    def __init__(self, channels: Tensor):
        self.channels = channels

    def pre_model(self, state: StepState, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.channels], dim=1)
