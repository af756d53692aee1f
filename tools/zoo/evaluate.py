"""How well the evaluation model tells captions apart, and a text-to-image model draws: `python -m tools.zoo.evaluate`.

Each held-out picture (its subject-background pair was in no training batch) is scored against its own caption and
nine wrong ones: three of the same subject on another background, three of another subject on the same background,
three of another pair.

With `--pipeline emoji-flow` that model is judged instead, as plain diffusers runs it with the scheduler of its files: which
subjects are found in its pictures among all, and CLIP score and FID by steps and guidance scale.  With `--levels emoji-pixel`
that model's denoiser is compared with the exact one of the pictures that it was trained on, by noise level.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research.clip import load_clip
from research.metrics.clip_score import CLIPScore
from research.metrics.fid import FID
from research.zoo import ZOO_DIR
from tools.zoo.data import COLOURS, SETS, SUBJECTS, Emoji, caption, load_emoji, pairs, random_pairs, to_uint8
from tools.zoo.flow import EMPTY_ROWS
from tools.zoo.reference import faces


def wrong_captions(subject: int, background: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Nine (subject, background) pairs: three with each of background, subject, and both replaced."""

    def other(count: int, than: int) -> list[int]:
        return [i for i in torch.randperm(count, generator=generator).tolist() if i != than][:3]

    same_subject = [(subject, b) for b in other(len(COLOURS), background)]
    same_background = [(s, background) for s in other(len(SUBJECTS), subject)]
    neither = list(zip(other(len(SUBJECTS), subject), other(len(COLOURS), background), strict=True))
    return same_subject + same_background + neither


@torch.no_grad()
def held_out_accuracy(emoji: Emoji, model: str = "emoji-eval", seed: int = 0) -> tuple[float, int]:
    """How often the right caption has the highest cosine of ten, and of how many pictures."""
    clip = load_clip(model)
    generator = torch.Generator().manual_seed(seed)
    right = total = 0
    for subject, background in pairs(held_out=True):
        candidates = [(subject, background), *wrong_captions(subject, background, generator)]
        texts = torch.nn.functional.normalize(clip.embed_texts([caption(s, b) for s, b in candidates]), dim=-1)
        index = torch.tensor([subject] * len(SETS))
        real = to_uint8(emoji.picture(index, torch.arange(len(SETS)), torch.tensor([background] * len(SETS))))
        images = torch.nn.functional.normalize(clip.embed_images(real), dim=-1)
        best = (images @ texts.T).argmax(dim=1)
        right += int((best == 0).sum())
        total += len(SETS)
    return right / total, total


class Drawer:
    """A text-to-image model of the zoo in plain diffusers; a picture a caption, whose seed is its place in the list."""

    def __init__(self, name: str, zoo: Path = ZOO_DIR) -> None:
        from diffusers import DiffusionPipeline

        index = json.loads((zoo / name / "model_index.json").read_text())
        missing: Any = {part: None for part, kind in index.items() if part.endswith("_3") and kind == [None, None]}
        self.pipeline: Any = DiffusionPipeline.from_pretrained(zoo / name, **missing)
        self.pipeline.set_progress_bar_config(disable=True)
        self.told = {"max_sequence_length": EMPTY_ROWS} if missing else {}

    def __call__(self, captions: Sequence[str], steps: int, scale: float, batch: int = 32) -> Tensor:
        """uint8 [N, 3, H, W]."""
        drawn = []
        for start in range(0, len(captions), batch):
            part = list(captions[start : start + batch])
            seeds = [torch.Generator().manual_seed(start + row) for row in range(len(part))]
            images = self.pipeline(
                part, generator=seeds, num_inference_steps=steps, guidance_scale=scale, output_type="pt", **self.told
            ).images
            drawn.append(to_uint8(torch.as_tensor(images) * 2 - 1))
        return torch.cat(drawn)


@torch.no_grad()
def subjects_found(draw: Drawer, model: str = "emoji-eval", steps: int = 15, scale: float = 3.0) -> tuple[float, float]:
    """One picture of each subject: how often its caption is the nearest of all subjects', and among the nearest five."""
    captions = [caption(s, s % len(COLOURS)) for s in range(len(SUBJECTS))]
    clip = load_clip(model)
    images = torch.nn.functional.normalize(clip.embed_images(draw(captions, steps, scale)), dim=-1)
    texts = torch.nn.functional.normalize(clip.embed_texts(captions), dim=-1)
    ranks = (images @ texts.T).argsort(dim=1, descending=True) == torch.arange(len(captions))[:, None]
    return float(ranks[:, :1].sum(1).float().mean()), float(ranks[:, :5].sum(1).float().mean())


@torch.no_grad()
def scores(draw: Drawer, steps: int, scale: float, images: int = 256) -> tuple[float, float]:
    """CLIP score and FID of pictures with captions of pairs that were trained on."""
    captions = [caption(*pair) for pair in random_pairs(images, torch.Generator().manual_seed(0)).tolist()]
    drawn = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in draw(captions, steps, scale)]
    return CLIPScore().compute(drawn, captions).values["clip_score"], FID().compute(drawn).values["fid"]


@torch.no_grad()
def denoiser_errors(
    emoji: Emoji, folder: Path, levels: Sequence[int], count: int = 40
) -> list[tuple[float, float, float]]:
    """Of each training time: SNR, and root mean squares of what the denoiser and its mean colour of a picture are off.

    The right answer is known: the mean of all training pictures, each by the likelihood of having become this noisy one.
    """
    from diffusers import DDIMScheduler, UNet2DModel

    network: Any = UNet2DModel.from_pretrained(folder / "unet")
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    known = torch.stack([picture / 127.5 - 1 for picture in faces(emoji)])
    generator = torch.Generator().manual_seed(0)
    clean = known[torch.randperm(len(known), generator=generator)[:count]]
    found = []
    for t in levels:
        signal, noise = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
        noisy = signal * clean + noise * torch.randn(clean.shape, generator=generator)
        output = network(noisy, t).sample
        if scheduler.config.prediction_type == "epsilon":
            denoised = (noisy - noise * output) / signal
        else:
            denoised = signal * noisy - noise * output
        distance = torch.cdist(noisy.flatten(1), signal * known.flatten(1)).square()
        best = torch.softmax(-distance / (2 * noise**2), dim=1) @ known.flatten(1)
        error = denoised - best.view_as(clean)
        off, off_colour = (float(part.square().mean().sqrt()) for part in (error, error.mean(dim=(2, 3))))
        found.append((float((signal / noise) ** 2), off, off_colour))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)")
    parser.add_argument("--model", default="emoji-eval")
    parser.add_argument("--pipeline", help="judge this text-to-image model of the zoo")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--levels", help="compare the denoiser of this pixel model with the exact one")
    parser.add_argument("--zoo", type=Path, default=ZOO_DIR, help="the folder of the model")
    arguments = parser.parse_args(argv)
    if arguments.pipeline:
        draw = Drawer(arguments.pipeline, arguments.zoo)
        first, five = subjects_found(draw)
        print(
            f"{arguments.pipeline}: the caption is found among {len(SUBJECTS)} for {first:.0%}, in five for {five:.0%}"
        )
        for scale in arguments.scales:
            for steps in arguments.steps:
                clip_score, fid = scores(draw, steps, scale)
                print(f"guidance {scale:g}, {steps} steps: CLIP score {clip_score:.1f}, FID {fid:.1f}", flush=True)
        return
    if arguments.levels:
        levels = (0, 30, 100, 200, 300, 400, 500, 600, 700, 800, 900, 960, 999)
        errors = denoiser_errors(load_emoji(arguments.data), arguments.zoo / arguments.levels, levels)
        for t, (snr, off, off_colour) in zip(levels, errors, strict=True):
            print(f"t {t}, SNR {snr:.1e}: picture off by {off:.3f}, its mean colour by {off_colour:.3f}")
        return
    accuracy, total = held_out_accuracy(load_emoji(arguments.data), arguments.model)
    print(f"{arguments.model}: the right caption is the best of ten for {accuracy:.1%} of {total} held-out pictures")


if __name__ == "__main__":
    main()
