"""How well the evaluation model tells captions apart: `python -m tools.zoo.evaluate`.

Each held-out picture (its subject-background pair was in no training batch) is scored against its own caption and
nine wrong ones: three of the same subject on another background, three of another subject on the same background,
three of another pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from research.clip import load_clip
from tools.zoo.data import COLOURS, SETS, SUBJECTS, Emoji, caption, load_emoji, pairs, to_uint8


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)")
    parser.add_argument("--model", default="emoji-eval")
    arguments = parser.parse_args(argv)
    accuracy, total = held_out_accuracy(load_emoji(arguments.data), arguments.model)
    print(f"{arguments.model}: the right caption is the best of ten for {accuracy:.1%} of {total} held-out pictures")


if __name__ == "__main__":
    main()
