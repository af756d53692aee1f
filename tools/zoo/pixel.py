"""The unconditional model: round faces on plain backgrounds, straight on 32x32 pixels, epsilon-prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from tools.zoo.data import RESOLUTION, SUBJECTS, Emoji, contact_sheet, pairs
from tools.zoo.training import Loss, Recipe, fit, load_ema

BATCH = 24
RECIPE = Recipe(steps=1500, lr=1.5e-3, seed=41, lr_end=0.02)
FACES = (
    "grinning face",
    "beaming face",
    "laughing face",
    "face with tears of joy",
    "smiling face",
    "upside down face",
    "winking face",
    "blushing face",
    "smiling face with halo",
    "face with heart eyes",
)


def build_pixel() -> Any:
    return UNet2DModel(
        sample_size=RESOLUTION,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
    )


def build_scheduler() -> Any:
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon", clip_sample=True)


def _epsilon_loss(emoji: Emoji) -> Loss:
    scheduler = build_scheduler()
    faces = {SUBJECTS.index(name) for name in FACES}
    table = torch.tensor([pair for pair in pairs(held_out=False) if pair[0] in faces])

    def loss(network: Any, generator: torch.Generator) -> Tensor:
        chosen = table[torch.randint(len(table), (BATCH,), generator=generator)]
        pictures, _ = emoji.batch(chosen, generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        noise = torch.randn(pictures.shape, generator=generator)
        predicted = network(scheduler.add_noise(pictures, noise, t), t).sample.float()
        return (predicted - noise).square().mean()

    return loss


def _draw(network: Any, path: Path) -> None:
    pipeline: Any = DDPMPipeline(unet=network, scheduler=DDIMScheduler.from_config(build_scheduler().config))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=32, generator=torch.Generator().manual_seed(0), num_inference_steps=50, output_type="pt"
    ).images
    contact_sheet(torch.as_tensor(images) * 2 - 1, columns=8, scale=4).save(path)


def train_pixel(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    torch.manual_seed(recipe.seed)
    fit("pixel", build_pixel(), _epsilon_loss(emoji), recipe, work, on_picture=_draw)


def load_pixel(work: Path) -> Any:
    return load_ema(build_pixel(), work, "pixel")
