"""The inpainting UNet: the text-to-image UNet with five more input channels, trained on to fill random masks.

Its nine channels are those of StableDiffusionInpaintPipeline, in that order: noisy latents (4), the mask (1), latents
of the picture without what the mask covers (4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.zoo.data import Emoji, contact_sheet
from research.zoo.masks import latent_masks, random_masks, without
from research.zoo.training import Draw, Recipe, fit, load_ema
from research.zoo.unet import (
    LATENT_SIZE,
    build_unet,
    latent_pool,
    load_unet,
    sample_prompts,
    text_states,
    v_loss,
)
from research.zoo.vae import load_vae

MASKS = 8  # random masks of each latent of the pool
EXTRA = 5
RECIPE = Recipe(steps=4800, lr=5e-4, seed=51, lr_end=0.02)


def build_inpaint() -> Any:
    return build_unet(in_channels=4 + EXTRA)


def widen(unet: Any) -> Any:
    """The nine-channel UNet that does what the given one does: the weights of the new input channels are zero."""
    wide = build_inpaint()
    state = unet.state_dict()
    old = state["conv_in.weight"]
    new = torch.zeros_like(wide.conv_in.weight)
    new[:, : old.shape[1]] = old
    wide.load_state_dict({**state, "conv_in.weight": new})
    return wide


@torch.no_grad()
def masked_pool(emoji: Emoji, work: Path) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """The pool of latents with its pairs and sets, masks [N, MASKS, 1, 8, 8] and masked latents [N, MASKS, 4, 8, 8] (half)."""
    vae = load_vae(work)
    generator = torch.Generator().manual_seed(RECIPE.seed)
    masks, covered = [], []

    def mask(pictures: Tensor, *_: Tensor) -> None:
        for _ in range(MASKS):
            drawn = random_masks(len(pictures), generator)
            posterior = vae.encode(without(pictures, drawn)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            covered.append((posterior.mean + posterior.std * noise).half())
            masks.append(latent_masks(drawn, LATENT_SIZE).half())

    latents, where, styles, factor = latent_pool(emoji, work, mask)
    sizes = [len(part) for part in masks[::MASKS]]

    def together(parts: list[Tensor]) -> Tensor:
        return torch.cat([torch.stack(parts[MASKS * k : MASKS * (k + 1)], dim=1) for k in range(len(sizes))])

    return (latents, where, styles), together(masks), (together(covered).float() * factor).half()


def _draw(emoji: Emoji, work: Path) -> Draw:
    """Rows of eight: pictures with a hole, and what the network puts there, for prompts of other subjects too."""
    from diffusers import DPMSolverMultistepScheduler

    generator = torch.Generator().manual_seed(7)
    prompts = sample_prompts() * 2
    pictures, _ = emoji.batch(torch.tensor([[k * 11 + 3, k % 10] for k in range(len(prompts))]), generator)
    masks = random_masks(len(prompts), generator)

    def draw(unet: Any, path: Path) -> None:
        from research.zoo.export import build_inpaint_pipeline

        pipeline = build_inpaint_pipeline(work, unet)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            prompts,
            image=pictures,
            mask_image=masks,
            height=pictures.shape[-2],
            width=pictures.shape[-1],
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            num_inference_steps=20,
            guidance_scale=3.0,
            output_type="pt",
        ).images
        columns = len(prompts)
        rows = torch.cat([pictures, without(pictures, masks), torch.as_tensor(images) * 2 - 1])
        contact_sheet(rows, columns=columns, scale=3).save(path)

    return draw


def train_inpaint(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    """Goes on from the text-to-image UNet of the same work folder."""
    torch.manual_seed(recipe.seed)
    unet: nn.Module = widen(load_unet(work)).requires_grad_(True)
    (latents, where, styles), masks, covered = masked_pool(emoji, work)

    def hints(rows: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.randint(MASKS, rows.shape, generator=generator)
        return torch.cat([masks[rows, which].float(), covered[rows, which].float()], dim=1)

    loss = v_loss(latents, where, styles, *text_states(work), hints)
    fit("inpaint", unet, loss, recipe, work, on_picture=_draw(emoji, work))


def load_inpaint(work: Path) -> Any:
    return load_ema(build_inpaint(), work, "inpaint")
