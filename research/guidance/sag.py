"""Self-attention guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research.checks import check_number
from research.errors import SamplingError
from research.guidance.blur import gaussian_blur, map_size
from research.guidance.perturbed import LayerPatch, PatchedLayers, free_name, plain_branch, pushed
from research.guidance.projections import recorded_output
from research.guidance.seg import checked_sigma
from research.sampling.interfaces import Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction, to_x0


class SAG(PatchedLayers):
    """Self-attention guidance (Hong et al., arXiv:2210.00939, eq. 16; with CFG eq. 25): ``g + scale * (e - d)``.

    ``e`` is the noise prediction of the unconditional branch, or of the conditional one if the base has no other. Its x0 is
    blurred where the self-attention of the middle block receives more than its share, noised again with ``e`` itself, and ``d``
    is the noise predicted for that: a second evaluation that needs the first. ``g`` is what the base gives.

    The difference is one of noise predictions, at two latents, whatever the model predicts. Parity mode takes it of the model's
    outputs as they are, as `StableDiffusionSAGPipeline` does, which is another thing for v-prediction.

    Args:
        scale: strength of the push, from 0; the paper uses 0.1 to 1 and the pipeline 0.75.
        blur_sigma: of the Gaussian, in latents, above 0; its kernel has 8 sigma + 1 places.
        threshold: attention received, as a multiple of the mean, above which a place is blurred; from 0.
        layers: self-attention layers of one map size, by pattern; their maps are averaged.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: blur or threshold is out of range; see also `PatchedLayers`.
    """

    kind = "attention-map"
    why = "reads the map of self-attention, which linear attention and attention beside a text have not"
    branch = "degraded"
    own_requires = PatchedLayers.own_requires | {"noise-levels"}

    def __init__(
        self,
        scale: float = 0.75,
        blur_sigma: float = 1.0,
        threshold: float = 1.0,
        layers: str | Sequence[str] = "mid",
        base: Guidance | None = None,
    ):
        super().__init__(scale, layers, base)
        self.blur_sigma = checked_sigma(blur_sigma, infinite=False)
        self.threshold = check_number("guidance.threshold", threshold, least=0)

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = list(self.guidance.branches(state))
        self._recorder: AttentionReceived | None = None
        if state.scale_of(self) == self.neutral or self.stands_still(state):
            return asked
        plain = plain_branch(asked, "uncond")
        self._recorder = AttentionReceived(self.chosen)
        self._plain, self._name = plain, free_name(self.branch, [branch.name for branch in asked])
        watched = replace(plain, patches=(*plain.patches, self._recorder))
        return [watched if branch is plain else branch for branch in asked]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self._recorder is None:
            return guided
        x, stage = state.x_before.detach(), state.stage
        plain = Prediction(predictions[self._plain.name].value.detach(), predictions[self._plain.name].kind)
        x0 = to_x0(plain, x, stage)
        mask = self._recorder.received((x.shape[-2], x.shape[-1])) > self.threshold
        kernel = 2 * math.ceil(4 * self.blur_sigma) + 1
        loss = torch.where(mask, x0 - gaussian_blur(x0, self.blur_sigma, kernel), 0)  # of x0, by the blur
        with torch.no_grad():
            name = self._name
            degraded = state.predict([replace(self._plain, name=name)], x=x - stage.signal * loss)[name]
        if not state.run.parity:
            degraded = _at_clean_latents(degraded, loss, state)
        return pushed(state, guided, state.scale_of(self), plain, degraded)


def _at_clean_latents(p: Prediction, loss: Tensor, state: StepState) -> Prediction:
    """A prediction made for latents whose x0 has lost something, as one of the same noise for the latents as they were.

    In epsilon nothing changes; the other kinds hold x0, which is higher by the loss (see `research.sampling.prediction`).
    """
    a, b = state.stage.signal, state.stage.noise
    share = {"epsilon": 0.0, "x0": 1.0, "v": -b / math.hypot(a, b), "flow": -1.0}[p.kind]
    return Prediction(p.value + share * loss, p.kind)


class AttentionReceived(LayerPatch):
    """Changes nothing: records how much attention each place of a self-attention layer's map receives."""

    alters = False

    def __init__(self, layers: Sequence[str]):
        super().__init__(layers)
        self.maps: list[Tensor] = []  # [N, places], one a layer; 1 on average over the places

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Tensor:
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        with ExitStack() as undo:
            undo.enter_context(recorded_output(layer.to_q, queries))
            undo.enter_context(recorded_output(layer.to_k, keys))
            output = forward(hidden, **kwargs)
        if not queries or not keys:
            raise SamplingError(
                "guidance: the attention map of a layer cannot be read, its projections are fused; accepted are plain layers."
            )
        heads = [layer.head_to_batch_dim(found[0].detach()) for found in (queries, keys)]
        shares = layer.get_attention_scores(*heads)  # [N * heads, places, places], rows sum to 1
        self.maps.append(shares.unflatten(0, (len(hidden), -1)).mean(1).sum(1).float())
        return output

    def received(self, latents: tuple[int, int]) -> Tensor:
        """The mean over layers, [N, 1, h, w] of the latents' size.

        Raises:
            SamplingError: the layers have maps of different sizes, or what they have is no map.
        """
        sizes = {found.shape[1] for found in self.maps}
        size = map_size(self.maps[0].shape[1], latents)
        if len(sizes) > 1 or size is None:
            raise SamplingError(
                f"guidance.layers: the layers have {', '.join(map(str, sorted(sizes)))} places for latents of "
                f"{latents[0]} x {latents[1]}; accepted are layers with maps of one size."
            )
        maps = torch.stack(self.maps).mean(0).unflatten(1, size)[:, None]
        return F.interpolate(maps, latents)
