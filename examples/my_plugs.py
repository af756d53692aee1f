# my_plugs.py
import torch

from research.guidance import Guidance
from research.sampling import Branch, Guided, Hook, Prediction


class RampedCFG(Guidance):
    """Classifier-free guidance whose scale rises linearly from 1 to `scale` over the steps."""

    requires = frozenset({"uncond"})

    def __init__(self, scale: float = 6.0):
        self.scale = scale

    def branches(self, state):
        return [Branch(name, state.conditions[name]) for name in ("uncond", "cond")]

    def combine(self, state, predictions):
        u, c = predictions["uncond"], predictions["cond"]
        scale = 1 + (state.scale_of(self) - 1) * (state.stage.step + 1) / state.stage.n_steps
        return Guided(Prediction(u.value + scale * (c.value - u.value), c.kind))


class Mirror(Hook):
    """Makes the latents symmetric for the first part of the steps: the right half mirrors the left."""

    def __init__(self, until: float = 0.4):
        self.until = until

    def pre_step(self, state):
        if state.stage.step < self.until * state.stage.n_steps:
            left = state.x[..., : state.x.shape[-1] // 2]
            state.x = torch.cat([left, left.flip(-1)], dim=-1)
