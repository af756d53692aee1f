"""The base class of latent diffusion models: pictures go through a VAE on their way in and out."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import torch
from torch import Tensor

from research.caches import MIB, Cache
from research.models.base import BaseModel
from research.models.geometry import LatentGeometry
from research.sampling.interfaces import Batch

_pictures = Cache("pictures", 256 * MIB)  # encoded; one of 512 x 512 takes 0.1 MB


class LatentModel(BaseModel):
    """A network on the latents of a VAE.

    Attributes:
        vae: ``AutoencoderKL`` or one like it.
        geometry: the shapes of its latents.
    """

    vae: Any
    geometry: LatentGeometry

    @property
    def vae_factor(self) -> int:
        return self.geometry.vae_factor

    @property
    def size_multiple(self) -> int:
        return self.geometry.vae_factor * self.geometry.patch

    @property
    def role(self) -> str:
        return self.geometry.role(self.path)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """See `LatentGeometry.latent_shape`."""
        return self.geometry.latent_shape(height, width)

    def normalised(self, sample: Tensor) -> Tensor:
        """Latents as the network knows them, of the VAE's own [N, C, h, w]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (sample - shift if shift else sample) * self.vae.config.scaling_factor

    def denormalised(self, latents: Tensor) -> Tensor:
        """The VAE's own latents, of those that the network knows; the inverse of `normalised`."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return latents / self.vae.config.scaling_factor + shift

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents [N, C, h, w] of pixels [N or 1, 3, H, W] in [-1, 1], drawn from the VAE's posterior.

        Each picture is encoded by itself, as pipelines do with a generator an image, so that it does not depend on what it is
        batched with. With parity there is a row for each row of ``pixels``, drawn in their order.
        """
        given, pixels = pixels, pixels.to(self.device, self.vae.dtype)
        if run.parity:
            posteriors = [self.posterior(pixels[i : i + 1]) for i in range(len(pixels))]
            pairs = zip(posteriors, run.noise.generators(stream), strict=False)
            drawn = torch.cat([self.drawn(posterior, generator) for posterior, generator in pairs])
            return self.normalised(drawn.to(self.noise_dtype))
        mean, std = map(torch.cat, zip(*map(self._encoded, pixels.split(1), given.split(1)), strict=True))
        latents = mean + std * run.noise.draw(stream, mean.shape[1:], mean.dtype)
        # laid out as noise is: the kernels of the network depend on the layout in memory, and so the last bits
        return self.normalised(latents).to(self.noise_dtype).contiguous()

    def posterior(self, pixels: Tensor) -> Any:
        """What the VAE says of pixels [1, 3, H, W]: a distribution with ``mean`` and ``std`` [1, C, h, w]."""
        return self.vae.encode(pixels).latent_dist

    def drawn(self, posterior: Any, generator: torch.Generator) -> Tensor:
        """A sample [1, C, h, w] of it, as pipelines draw it."""
        return posterior.sample(generator)

    def _encoded(self, pixels: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [1, C, h, w] of a picture's latents, kept by VAE and picture; ``given`` are its pixels as
        they were before they went to the device."""

        def made() -> tuple[Tensor, Tensor]:
            posterior = self.posterior(pixels)
            return posterior.mean, posterior.std

        if pixels.requires_grad:
            return made()
        picture = hashlib.sha256(given.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()
        # the network itself and not its file: who changes one in a notebook sees the change
        key = weakref.ref(self.vae), self.device, self.vae.dtype, tuple(pixels.shape), given.dtype, picture
        return _pictures.get(key, made, lambda pair: sum(t.nbytes for t in pair))

    def decode_pixels(self, latents: Tensor) -> Tensor:
        # the VAE may be more precise than the network
        return self.vae.decode(self.denormalised(latents.to(self.vae.dtype)), return_dict=False)[0]
