"""The autoencoder: 32x32 RGB to 4x8x8 latents, and a second pass that trains the decoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from tools.zoo.data import COLOURS, RESOLUTION, SETS, SUBJECTS, Emoji, contact_sheet, pairs, random_pairs
from tools.zoo.training import Draw, Loss, Recipe, fit, load_ema

BATCH = 48
KL_WEIGHT = 5e-5
RECIPE = Recipe(steps=3200, lr=2e-3, seed=11, weight_decay=1e-4)
# The UNet is trained on the encoder of the first pass; the decoder may still improve afterwards.
DECODER_RECIPE = Recipe(steps=3000, lr=1e-3, seed=12, weight_decay=1e-4)


def build_vae() -> Any:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=RESOLUTION,
    )


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels plus half of L1 on their horizontal and vertical differences, which keeps edges sharp."""
    gradients = F.l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(
        output.diff(dim=-2), target.diff(dim=-2)
    )
    return F.l1_loss(output, target) + 0.5 * gradients


def _vae_loss(emoji: Emoji) -> Loss:
    def loss(vae: Any, generator: torch.Generator) -> Tensor:
        pictures, _ = emoji.batch(random_pairs(BATCH, generator), generator)
        posterior = vae.encode(pictures).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        decoded = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        return reconstruction_loss(decoded, pictures) + KL_WEIGHT * kl

    return loss


def _decoder_loss(emoji: Emoji) -> Loss:
    def loss(vae: Any, generator: torch.Generator) -> Tensor:
        pictures, _ = emoji.batch(random_pairs(BATCH, generator), generator)
        with torch.no_grad():
            posterior = vae.encode(pictures).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean.float() + noise * posterior.std.float()
        return reconstruction_loss(vae.decode(latents).sample.float(), pictures)

    return loss


def _draw(emoji: Emoji) -> Draw:
    subjects = torch.arange(0, len(SUBJECTS), len(SUBJECTS) // 24)[:24]
    pictures = emoji.picture(subjects, subjects % len(SETS), subjects % len(COLOURS))

    def draw(vae: Any, path: Path) -> None:
        decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        contact_sheet(torch.cat([pictures, decoded]), columns=12, scale=4).save(path)
        print(f"\nPSNR {psnr(vae, emoji):.2f} dB", flush=True)

    return draw


@torch.no_grad()
def psnr(vae: Any, emoji: Emoji) -> float:
    """Mean PSNR in dB over unshifted pictures of the held-out pairs, both sets, from the posterior's mean."""
    values = []
    for subject, background in pairs(held_out=True):
        index = torch.tensor([subject] * len(SETS))
        pictures = emoji.picture(index, torch.arange(len(SETS)), torch.tensor([background] * len(SETS)))
        decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((decoded - pictures) / 2).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())


def train_vae(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    torch.manual_seed(recipe.seed)
    fit("vae", build_vae(), _vae_loss(emoji), recipe, work, on_picture=_draw(emoji))


def train_decoder(emoji: Emoji, work: Path, recipe: Recipe = DECODER_RECIPE) -> None:
    """Goes on with the decoder while the latents, and so everything trained on them, stay what they are."""
    vae = load_ema(build_vae(), work, "vae")
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    fit("decoder", vae, _decoder_loss(emoji), recipe, work, on_picture=_draw(emoji))


def load_vae(work: Path) -> Any:
    """The newest autoencoder there is: the decoder of the second pass if it has begun."""
    vae = load_ema(build_vae(), work, "vae")
    if (Path(work) / "decoder.pt").is_file():
        load_ema(vae, work, "decoder")
    return vae
