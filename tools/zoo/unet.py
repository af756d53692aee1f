"""The text-conditioned UNet: v-prediction on a pool of latents, conditioned on the frozen text tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from tools.zoo.clip import WIDTH, caption_ids, load_clip, random_variant, tokenize
from tools.zoo.data import COLOURS, SETS, SUBJECTS, Emoji, caption, contact_sheet, pairs
from tools.zoo.training import Draw, Loss, Recipe, fit, load_ema
from tools.zoo.vae import load_vae

BATCH = 64
LATENT_SIZE = 8
COPIES = 3  # latents of each subject, set and background: other shifts, other draws of the posterior
EMPTY_CAPTIONS = 0.1
SCALING_FILE = "scaling_factor.json"  # one over the deviation of the latents, kept beside the checkpoints
RECIPE = Recipe(steps=7000, lr=1.2e-3, seed=31, lr_end=0.02)
SAMPLE_SUBJECTS = ("pizza", "strawberry", "hamburger", "cat face", "tiger face", "octopus", "sunflower", "smiling face")


def build_unet(in_channels: int = 4, channels: tuple[int, int] = (96, 160), heads: int = 5, groups: int = 16) -> Any:
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=heads,  # diffusers reads this as the number of heads
        norm_num_groups=groups,
    )


def build_scheduler() -> Any:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@torch.no_grad()
def latent_pool(
    emoji: Emoji, vae: Any, also: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Latents of deviation 1 [N, 4, 8, 8], their pairs [N, 2] and sets [N], and the factor they were scaled by.

    `also(pictures, subjects, styles, shifts)` meets the pictures part by part, in the order of the pool.
    """
    generator = torch.Generator().manual_seed(RECIPE.seed)
    chosen = torch.tensor(pairs(held_out=False))
    latents, where, styles = [], [], []
    for _ in range(COPIES):
        for style in range(len(SETS)):
            for part in chosen.split(256):
                shift = torch.randint(-1, 2, (len(part), 2), generator=generator)
                index = torch.full((len(part),), style)
                pictures = emoji.picture(part[:, 0], index, part[:, 1], shift)
                if also is not None:
                    also(pictures, part[:, 0], index, shift)
                posterior = vae.encode(pictures).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=generator)
                latents.append(posterior.mean + posterior.std * noise)
                where.append(part)
                styles.append(index)
    pool = torch.cat(latents)
    factor = 1.0 / float(pool.std())
    return pool * factor, torch.cat(where), torch.cat(styles), factor


@torch.no_grad()
def text_states(work: Path) -> tuple[Tensor, Tensor]:
    """Last hidden states of every caption [subjects, backgrounds, 2 + sets, 16, dim], and of the empty one [16, dim]."""
    model, tokenizer = load_clip(work, "clip")
    ids = caption_ids(tokenizer)
    flat = ids.view(-1, ids.shape[-1])
    states = torch.cat([model.text_model(part).last_hidden_state for part in flat.split(512)])
    empty = model.text_model(tokenize(tokenizer, [""])).last_hidden_state[0]
    return states.view(*ids.shape, -1), empty


def v_loss(
    latents: Tensor,
    where: Tensor,
    styles: Tensor,
    states: Tensor,
    empty: Tensor,
    hints: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    empty_captions: float = EMPTY_CAPTIONS,
) -> Loss:
    """v-prediction on a pool of latents, their pairs and sets, and the text of every caption.

    `hints(rows, generator)` gives further input channels [batch, C, 8, 8] for the drawn rows of the pool.
    """
    alphas = build_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    # min-SNR weighting with gamma 5 for v-prediction (arXiv:2303.09556, section 3.4)
    weights = snr.clamp(max=5) / (snr + 1)
    if hints is not None:
        # that weight is near 0 where noise hides all: there the hints alone tell what is kept, and must be learnt too
        weights = weights.clamp(min=0.3)

    def loss(unet: Any, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        clean, pair, style = latents[rows].float(), where[rows], styles[rows]
        text = states[pair[:, 0], pair[:, 1], random_variant(style, generator)]
        dropped = torch.rand(BATCH, generator=generator) < empty_captions
        text = torch.where(dropped[:, None, None], empty, text)
        t = torch.randint(len(alphas), (BATCH,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal, level = (part[t].view(-1, 1, 1, 1) for part in (alphas.sqrt(), (1 - alphas).sqrt()))
        noisy = signal * clean + level * noise
        if hints is not None:
            noisy = torch.cat([noisy, hints(rows, generator)], dim=1)
        predicted = unet(noisy, t, encoder_hidden_states=text).sample.float()
        error = (predicted - (signal * noise - level * clean)).square().mean(dim=(1, 2, 3))
        return (weights[t] * error).mean()

    return loss


def sample_prompts() -> list[str]:
    """Eight captions of pairs that were trained on."""
    trained = set(pairs(held_out=False))
    prompts = []
    for place, name in enumerate(SAMPLE_SUBJECTS):
        subject = SUBJECTS.index(name)
        colours = [(place * 3 + 2 + k) % len(COLOURS) for k in range(len(COLOURS))]
        prompts.append(caption(subject, next(b for b in colours if (subject, b) in trained)))
    return prompts


def _draw(work: Path) -> Draw:
    from diffusers import DPMSolverMultistepScheduler

    def draw(unet: Any, path: Path) -> None:
        from tools.zoo.export import build_pipeline

        pipeline = build_pipeline(work, unet)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        prompts = [prompt for prompt in sample_prompts() for _ in range(4)]
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        images = pipeline(
            prompts, generator=generators, num_inference_steps=20, guidance_scale=3.0, output_type="pt"
        ).images
        contact_sheet(torch.as_tensor(images) * 2 - 1, columns=8, scale=4).save(path)

    return draw


def train_unet(emoji: Emoji, work: Path, recipe: Recipe = RECIPE) -> None:
    torch.manual_seed(recipe.seed)
    latents, where, styles, factor = latent_pool(emoji, load_vae(work))
    (Path(work) / SCALING_FILE).write_text(json.dumps(factor))
    loss = v_loss(latents, where, styles, *text_states(work))
    fit("unet", build_unet(), loss, recipe, work, on_picture=_draw(work))


def scaling_factor(work: Path) -> float:
    """What latents are multiplied by so that their deviation is 1; known once the UNet's training has begun."""
    return round(float(json.loads((Path(work) / SCALING_FILE).read_text())), 6)


def load_unet(work: Path) -> Any:
    return load_ema(build_unet(), work, "unet")
