"""The unconditional model: round faces on plain backgrounds, straight on 32x32 pixels, v-prediction.

It predicts v and not epsilon for the sake of the first steps: where noise hides all, an error of 0.001 in epsilon is one of
several units in the picture, and a sampler that adds no noise (DDIM) carries the wrong colours along to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from tools.zoo.data import RESOLUTION, SUBJECTS, Emoji, contact_sheet, pairs
from tools.zoo.training import Parts, Recipe, fit, load_ema

BATCH = 32
MOST_SNR = 20.0  # levels with less noise count for less, by this over their SNR
# a CPU without bfloat16 arithmetic is faster in float32
RECIPE = Recipe(steps=1900, lr=1.5e-3, seed=41, lr_end=0.02, warmup=200, autocast=False)
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
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", prediction_type="v_prediction", clip_sample=True
    )


def _v_loss(emoji: Emoji, parts: int) -> Callable[[Any, torch.Generator], Parts]:
    """v-prediction, in so many `parts` of a batch side by side.

    The error of v is that of the picture times SNR + 1: it weighs the picture's where there is much noise and the
    noise's where there is little.
    """
    alphas = build_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = (MOST_SNR / (snr + 1)).clamp(max=1)
    faces = {SUBJECTS.index(name) for name in FACES}
    table = torch.tensor([pair for pair in pairs(held_out=False) if pair[0] in faces])

    def loss(network: Any, generator: torch.Generator) -> Parts:
        chosen = table[torch.randint(len(table), (BATCH,), generator=generator)]
        pictures, _ = emoji.batch(chosen, generator)
        t = torch.randint(len(alphas), (BATCH,), generator=generator)
        noise = torch.randn(pictures.shape, generator=generator)
        signal, level = (part[t].view(-1, 1, 1, 1) for part in (alphas.sqrt(), (1 - alphas).sqrt()))
        noisy, v = signal * pictures + level * noise, signal * noise - level * pictures

        def of_part(part: slice) -> Tensor:
            error = (network(noisy[part], t[part]).sample.float() - v[part]).square().mean(dim=(1, 2, 3))
            return (weights[t[part]] * error).sum() / BATCH

        size = -(-BATCH // parts)
        return [partial(of_part, slice(start, start + size)) for start in range(0, BATCH, size)]

    return loss


def _draw(network: Any, path: Path) -> None:
    pipeline: Any = DDPMPipeline(unet=network, scheduler=DDIMScheduler.from_config(build_scheduler().config))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=32, generator=torch.Generator().manual_seed(0), num_inference_steps=50, output_type="pt"
    ).images
    contact_sheet(torch.as_tensor(images) * 2 - 1, columns=8, scale=4).save(path)


def train_pixel(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    """The threads that torch has become parts of the batch."""
    parts = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    network = build_pixel().to(memory_format=torch.channels_last)  # faster on a CPU
    fit("pixel", network, _v_loss(emoji, parts), recipe, work, on_picture=_draw)
    torch.set_num_threads(parts)


def load_pixel(work: Path) -> Any:
    return load_ema(build_pixel(), work, "pixel")
