"""What Flux, Chroma and Qwen-Image share: their transformers take tokens of 2 x 2 latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from research.models.denoiser import NetworkDenoiser
from research.models.families.flow_times import even_sigmas, linear_mu
from research.models.families.pipeline_model import PipelineModel
from research.models.geometry import LatentGeometry
from research.sampling.interfaces import Batch, Condition
from research.sampling.packing import pack, unpack
from research.solvers.upstream_levels import Shape


class PackedModel(PipelineModel):
    """A transformer on packed latents that predicts flow. In the loop latents are [N, C, h, w]; they are packed where the network
    is called, which changes no bit, as steps, noise and masks work element by element."""

    together = "none"
    steps_by_seed = False
    resizes_pictures = True
    encodes_once = True
    max_length: int = 512
    sigmas_for_all = True  # whether its pipeline gives sigmas to classes that have flow sigmas of their own

    @abstractmethod
    def of_tokens(
        self, tokens: Tensor, time: Tensor, told: Condition, grid: tuple[int, int], *, parity: bool
    ) -> Tensor:
        """The network's prediction for tokens [B, L, 4 C] at flow times [B] from 1 to 0; ``grid`` is the tokens' height and
        width. With ``parity`` it is called as by the pipeline."""

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        return LatentGeometry(
            in_channels=network.get("in_channels", 64) // 4,
            latent_channels=vae.get("latent_channels", 4),
            sample_size=(128, 128),
            vae_factor=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
            patch=2,
        )

    @classmethod
    def schedule_of(
        cls, network: Mapping[str, Any], scheduler: Any, steps: int, shape: Shape, parity: bool
    ) -> Mapping[str, Any]:
        told: dict[str, Any] = {}
        if parity or scheduler.config.get(
            "use_dynamic_shifting"
        ):  # pipelines say it to all, and some classes refuse it
            told["mu"] = linear_mu((shape[1] // 2) * (shape[2] // 2), scheduler.config)
        if not scheduler.config.get("use_flow_sigmas") or (parity and cls.sigmas_for_all):
            told["sigmas"] = even_sigmas(steps)
        return told

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        made = super().denoiser(run)
        made.evaluate = partial(self.evaluate, parity=run.parity)
        return made

    def evaluate(self, x: Tensor, t: Tensor, told: Condition, *, parity: bool = False) -> Tensor:
        height, width = x.shape[2:]
        time = (
            t.expand(len(x)).to(x.dtype) / 1000
        )  # in half precision the network rounds times however they are divided
        tokens = self.of_tokens(pack(x), time, told, (height // 2, width // 2), parity=parity)
        return unpack(tokens, height, width)


@lru_cache(maxsize=16)
def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """The place of each token [height * width, 3]: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    return places.reshape(-1, 3).to(device, torch.float32)
