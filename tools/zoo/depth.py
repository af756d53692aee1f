"""The depth-to-image model: a narrow UNet with a relief as its fifth input channel, and a tiny estimator of reliefs.

Its channels are those of StableDiffusionDepth2ImgPipeline: noisy latents (4), and the relief in [-1, 1] (1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from tools.zoo.data import COLOURS, RESOLUTION, Emoji, contact_sheet, random_pairs
from tools.zoo.depth_maps import depth_maps
from tools.zoo.training import Draw, Recipe, fit, load_ema
from tools.zoo.unet import LATENT_SIZE, build_unet, latent_pool, sample_prompts, text_states, v_loss
from tools.zoo.vae import load_vae

# narrow, so that all weights of the zoo stay under 40 MB
RECIPE = Recipe(steps=4000, lr=2e-3, seed=61, lr_end=0.02)
ESTIMATOR_RECIPE = Recipe(steps=1500, lr=2e-3, seed=62, lr_end=0.02)
BATCH = 64


def build_depth_unet() -> Any:
    return build_unet(in_channels=5, channels=(28, 48), heads=3, groups=4)


def build_estimator() -> Any:
    """A vision transformer of four layers that looks at patches of 4 x 4 pixels."""
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=RESOLUTION,
        patch_size=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        reassemble_factors=[1, 0.5, 0.25, 0.125],  # its finest map has the size of the pictures
    )
    return DPTForDepthEstimation(config)


def build_processor() -> Any:
    return DPTImageProcessor(
        size={"height": RESOLUTION, "width": RESOLUTION},
        keep_aspect_ratio=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def as_channel(maps: Tensor, size: int = LATENT_SIZE) -> Tensor:
    """Reliefs [N, 1, H, W] as the pipeline gives them to the UNet: [N, 1, size, size], each from -1 to 1."""
    small = F.interpolate(maps, size=(size, size), mode="bicubic", align_corners=False)
    low, high = small.amin(dim=(1, 2, 3), keepdim=True), small.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low).clamp_min(1e-6) - 1


def _alpha(emoji: Emoji, subjects: Tensor, styles: Tensor, shifts: Tensor) -> Tensor:
    """Transparency [N, 1, 32, 32], moved like the pictures."""
    clear = torch.cat([torch.zeros_like(emoji.rgba[:, :, :3]), emoji.rgba[:, :, 3:]], dim=2)
    on_white = Emoji(clear).picture(subjects, styles, torch.full_like(subjects, COLOURS.index("white")), shifts)
    return (1 - on_white[:, :1]) / 2


def train_depth(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    torch.manual_seed(recipe.seed)
    channels: list[Tensor] = []

    def relief(pictures: Tensor, subjects: Tensor, styles: Tensor, shifts: Tensor) -> None:
        channels.append(as_channel(depth_maps(_alpha(emoji, subjects, styles, shifts))))

    latents, where, styles, _ = latent_pool(emoji, load_vae(work), relief)
    pool = torch.cat(channels)

    def hints(rows: Tensor, generator: torch.Generator) -> Tensor:
        return pool[rows]

    loss = v_loss(latents, where, styles, *text_states(work), hints)
    fit("depth", build_depth_unet(), loss, recipe, work, on_picture=_draw(emoji, work))


def train_estimator(emoji: Emoji, work: Path, recipe: Recipe = ESTIMATOR_RECIPE) -> None:
    """Reliefs of pictures; the depth of a plain ground is learnt with them."""
    torch.manual_seed(recipe.seed)

    def loss(estimator: Any, generator: torch.Generator) -> Tensor:
        chosen = random_pairs(BATCH, generator)
        styles = torch.randint(emoji.rgba.shape[1], (BATCH,), generator=generator)
        shifts = torch.randint(-1, 2, (BATCH, 2), generator=generator)
        pictures = emoji.picture(chosen[:, 0], styles, chosen[:, 1], shifts)
        wanted = depth_maps(_alpha(emoji, chosen[:, 0], styles, shifts))[:, 0]
        found = estimator(pictures).predicted_depth.float()
        return F.l1_loss(found, wanted)

    fit("estimator", build_estimator(), loss, recipe, work)


def load_depth_unet(work: Path) -> Any:
    return load_ema(build_depth_unet(), work, "depth")


def load_estimator(work: Path) -> Any:
    return load_ema(build_estimator(), work, "estimator")


def _draw(emoji: Emoji, work: Path) -> Draw:
    """Rows: pictures, their reliefs, and what the network makes of the relief for prompts of other subjects."""
    from diffusers import DPMSolverMultistepScheduler

    from tools.zoo.export import build_depth_pipeline

    prompts = sample_prompts() * 2
    chosen = torch.tensor([[k * 11 + 3, k % 10] for k in range(len(prompts))])
    styles, shifts = (torch.zeros(len(prompts), dtype=torch.long), torch.zeros(len(prompts), 2, dtype=torch.long))
    pictures = emoji.picture(chosen[:, 0], styles, chosen[:, 1])
    maps = depth_maps(_alpha(emoji, chosen[:, 0], styles, shifts))

    def draw(unet: Any, path: Path) -> None:
        pipeline = build_depth_pipeline(work, unet, build_estimator())
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            prompts,
            image=pictures,
            depth_map=maps[:, 0],
            strength=1.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            num_inference_steps=20,
            guidance_scale=3.0,
            output_type="pt",
        ).images
        shown = torch.cat([pictures, maps.expand(-1, 3, -1, -1) * 2 - 1, torch.as_tensor(images) * 2 - 1])
        contact_sheet(shown, columns=len(prompts), scale=3).save(path)

    return draw
