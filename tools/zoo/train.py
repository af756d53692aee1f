"""Trains the embedded models: `python -m tools.zoo.train STAGE|all --work DIR`; resumes what was interrupted."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from research.zoo import ZOO_DIR
from tools.zoo.training import Recipe

ALL = ("vae", "clip", "eval", "unet", "pixel", "inpaint", "depth", "estimator", "flow")  # in the order `all` runs them
STAGES = (*ALL, "decoder")  # the decoder may be improved at any time later


def _recipe(base: Recipe, arguments: argparse.Namespace) -> Recipe:
    names = ("steps", "seed", "lr", "checkpoint_seconds", "picture_seconds")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return dataclasses.replace(base, **given)


def run_stage(stage: str, arguments: argparse.Namespace) -> None:
    from tools.zoo import data

    emoji = data.load_emoji(arguments.data)
    work = arguments.work
    if stage == "vae":
        from tools.zoo import vae

        vae.train_vae(emoji, work, _recipe(vae.RECIPE, arguments))
    elif stage == "decoder":
        from tools.zoo import vae

        vae.train_decoder(emoji, work, _recipe(vae.DECODER_RECIPE, arguments))
    elif stage == "clip":
        from tools.zoo import clip

        clip.train_clip(emoji, work, "clip", _recipe(clip.RECIPE, arguments))
    elif stage == "eval":
        from tools.zoo import clip

        clip.train_clip(emoji, work, "eval", _recipe(clip.EVAL_RECIPE, arguments))
    elif stage == "unet":
        from tools.zoo import unet

        unet.train_unet(emoji, work, _recipe(unet.RECIPE, arguments))
    elif stage == "pixel":
        from tools.zoo import pixel

        pixel.train_pixel(emoji, work, _recipe(pixel.RECIPE, arguments))
    elif stage == "flow":
        from tools.zoo import flow

        flow.train_flow(emoji, work, arguments.out, _recipe(flow.RECIPE, arguments))
    elif stage == "inpaint":
        from tools.zoo import inpaint

        inpaint.train_inpaint(emoji, work, _recipe(inpaint.RECIPE, arguments))
    elif stage == "depth":
        from tools.zoo import depth

        depth.train_depth(emoji, work, _recipe(depth.RECIPE, arguments))
    elif stage == "estimator":
        from tools.zoo import depth

        depth.train_estimator(emoji, work, _recipe(depth.ESTIMATOR_RECIPE, arguments))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.train", description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, pictures and logs")
    parser.add_argument("--out", type=Path, default=ZOO_DIR, help="where finished models are written")
    parser.add_argument("--steps", type=int, help="optimizer steps of the stage")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-seconds", type=float)
    parser.add_argument("--picture-seconds", type=float)
    parser.add_argument("--no-export", action="store_true", help="train only")
    arguments = parser.parse_args(argv)
    if arguments.stage == "all" and (arguments.steps or arguments.seed is not None or arguments.lr):
        parser.error("--steps, --seed and --lr belong to one stage, not to all")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in ALL if arguments.stage == "all" else (arguments.stage,):
        run_stage(stage, arguments)
        if not arguments.no_export:
            from tools.zoo import export

            export.export_ready(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
