"""The inpainting UNet: the text-to-image UNet with five more input channels, trained on to fill random masks.

Its nine channels are those of StableDiffusionInpaintPipeline, in that order: noisy latents (4), the mask (1), latents
of the picture without what the mask covers (4).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.zoo.data import Emoji, contact_sheet, is_held_out, pairs
from tools.zoo.masks import latent_masks, random_masks, without
from tools.zoo.training import Draw, Recipe, fit, load_ema
from tools.zoo.unet import (
    COPIES,
    LATENT_SIZE,
    build_unet,
    load_unet,
    sample_prompts,
    scaling_factor,
    text_states,
    v_loss,
)
from tools.zoo.vae import load_vae

MASKS = 4  # random masks of each picture of the pool
OTHERS = 0.5  # how often another emoji is seen through the hole
EMPTY_CAPTIONS = 0.25  # then only what is kept tells what is missing
EXTRA = 5
RECIPE = Recipe(steps=4600, lr=5e-4, seed=51, lr_end=0.02)


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


@dataclass(frozen=True)
class MaskedPool:
    """Pictures with holes; every tensor has one row a picture and mask.

    Attributes:
        latents: of the whole picture [N, 4, 8, 8], deviation 1.
        where, styles: subject and background [N, 2] and set [N] of what is in the hole.
        hints: the mask and the latents of what is outside [N, 5, 8, 8].
    """

    latents: Tensor
    where: Tensor
    styles: Tensor
    hints: Tensor


@torch.no_grad()
def masked_pool(emoji: Emoji, work: Path) -> MaskedPool:
    """Holes in all pictures of the pool. In half of them another emoji on the same background is seen through the hole.

    Without those the caption tells all there is in a picture, and a network need not look at what is kept.
    """
    vae, factor = load_vae(work), scaling_factor(work)
    generator = torch.Generator().manual_seed(RECIPE.seed)
    chosen = torch.tensor(pairs(held_out=False)).repeat(COPIES * MASKS, 1)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    subjects = len(emoji.rgba)

    def encode(pictures: Tensor) -> Tensor:
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        return ((posterior.mean + posterior.std * noise) * factor).half()

    rows: list[tuple[Tensor, ...]] = []
    for kept in chosen.split(256):
        hole = kept.clone()
        other = torch.rand(len(kept), generator=generator) < OTHERS
        hole[other, 0] = torch.randint(subjects, (len(kept),), generator=generator)[other]
        outside, style = emoji.batch(kept, generator)
        held_out = torch.tensor([is_held_out(*pair) for pair in hole.tolist()])
        other, hole = other & ~held_out, torch.where(held_out[:, None], kept, hole)
        inside, style_inside = emoji.batch(hole, generator)
        masks = random_masks(len(kept), generator)
        # the picture's own hole shows the picture itself
        inside = torch.where(other[:, None, None, None], inside, outside)
        style = torch.where(other, style_inside, style)
        whole = torch.where(masks >= 0.5, inside, outside)
        hints = torch.cat([latent_masks(masks, LATENT_SIZE).half(), encode(without(whole, masks))], dim=1)
        rows.append((encode(whole), hole, style, hints))
    latents, where, styles, hints = (torch.cat(part) for part in zip(*rows, strict=True))
    return MaskedPool(latents, where, styles, hints)


def _draw(emoji: Emoji, work: Path) -> Draw:
    """Rows of eight: pictures with a hole, and what the network puts there, for prompts of other subjects too."""
    from diffusers import DPMSolverMultistepScheduler

    generator = torch.Generator().manual_seed(7)
    prompts = sample_prompts() * 2
    pictures, _ = emoji.batch(torch.tensor([[k * 11 + 3, k % 10] for k in range(len(prompts))]), generator)
    masks = random_masks(len(prompts), generator)

    def draw(unet: Any, path: Path) -> None:
        from tools.zoo.export import build_inpaint_pipeline

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
    pool = masked_pool(emoji, work)

    def hints(rows: Tensor, generator: torch.Generator) -> Tensor:
        return pool.hints[rows].float()

    states = text_states(work)
    loss = v_loss(pool.latents, pool.where, pool.styles, *states, hints, empty_captions=EMPTY_CAPTIONS)
    fit("inpaint", unet, loss, recipe, work, on_picture=_draw(emoji, work))


def load_inpaint(work: Path) -> Any:
    return load_ema(build_inpaint(), work, "inpaint")
