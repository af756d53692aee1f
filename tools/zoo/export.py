"""Stages as directories that plain diffusers and transformers open; weights are fp16 on disk.

`python -m tools.zoo.export --work DIR` writes what there is, whether its training has ended or not.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from transformers import CLIPTextModel

from research.zoo import ZOO_DIR
from tools.zoo import clip, depth, flow, inpaint, pixel, unet
from tools.zoo.data import RESOLUTION
from tools.zoo.training import checkpoint_path
from tools.zoo.vae import load_vae

SHARED = ("vae", "text_encoder", "tokenizer")  # of the latent models: stored once, in `emoji`
PREVIEW_FILE = "preview.json"


def build_pipeline(work: Path, network: Any = None) -> Any:
    """The text-to-image pipeline of a work folder's checkpoints; `network` in place of its UNet."""
    return StableDiffusionPipeline(unet=network if network is not None else unet.load_unet(work), **_parts(work))


def build_inpaint_pipeline(work: Path, network: Any = None) -> Any:
    """The inpainting pipeline of a work folder's checkpoints; `network` in place of its UNet."""
    return StableDiffusionInpaintPipeline(
        unet=network if network is not None else inpaint.load_inpaint(work), **_parts(work)
    )


def build_depth_pipeline(work: Path, network: Any = None, estimator: Any = None) -> Any:
    """The depth-to-image pipeline of a work folder's checkpoints; `network` and `estimator` in place of its own."""
    parts = _parts(work)
    for unused in ("safety_checker", "requires_safety_checker", "feature_extractor"):
        parts.pop(unused)
    return StableDiffusionDepth2ImgPipeline(
        unet=network if network is not None else depth.load_depth_unet(work),
        depth_estimator=estimator if estimator is not None else depth.load_estimator(work),
        feature_extractor=depth.build_processor(),
        **parts,
    )


def _parts(work: Path) -> dict[str, Any]:
    """What the latent models have in common."""
    model, tokenizer = clip.load_clip(work, "clip")
    text_config: Any = model.config.text_config
    text_encoder: Any = CLIPTextModel(text_config)
    getattr(text_encoder, "text_model", text_encoder).load_state_dict(model.text_model.state_dict())
    vae = load_vae(work)
    vae.register_to_config(scaling_factor=unet.scaling_factor(work))
    return {
        "vae": vae,
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "scheduler": unet.build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def export_ready(work: Path, out: Path) -> None:
    """Write every model whose stages have a checkpoint, finished or not."""
    stages = ("vae", "clip", "eval", "unet", "pixel", "inpaint", "depth", "estimator", "flow")
    have = {stage for stage in stages if checkpoint_path(work, stage).is_file()}
    if {"vae", "clip", "unet"} <= have:
        _save(build_pipeline(work), out / "emoji")
    if "eval" in have:
        _save_evaluation(work, out / "emoji-eval")
    if "pixel" in have:
        _save(DDPMPipeline(unet=pixel.load_pixel(work), scheduler=pixel.build_scheduler()), out / "emoji-pixel")
    if {"vae", "clip", "inpaint"} <= have:
        _save(build_inpaint_pipeline(work), out / "emoji-inpaint", borrowed=out / "emoji")
    if {"vae", "clip", "depth", "estimator"} <= have:
        _save(build_depth_pipeline(work), out / "emoji-depth", borrowed=out / "emoji")
    if "flow" in have:
        _save(flow.build_pipeline(out, flow.load_flow(work)), out / "emoji-flow", borrowed=out / "emoji")


def _save(pipeline: Any, target: Path, borrowed: Path | None = None) -> None:
    """Write a pipeline; files of shared components that equal those of the `borrowed` directory beside it become links.

    So do files of a second tokenizer or text encoder that equal those of the first.  Single files and not folders are
    linked: wheels hold what a linked file contains, but leave linked folders out.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pipeline.to(torch.float16).save_pretrained(scratch, safe_serialization=True)
        for part in ("text_encoder", "text_encoder_2", "depth_estimator"):  # of transformers
            config = Path(scratch) / part / "config.json"
            if config.is_file():
                _loads_as_float32(config)
        for config in Path(scratch).glob("tokenizer*/tokenizer_config.json"):
            _forgets_where_it_was(config)
        if borrowed is not None:
            if (borrowed / PREVIEW_FILE).is_file():  # of the same latents
                (Path(scratch) / PREVIEW_FILE).symlink_to(Path("..", borrowed.name, PREVIEW_FILE))
            for part in SHARED:
                _link_equal(Path(scratch) / part, borrowed / part, Path("..", "..", borrowed.name, part))
                if (second := Path(scratch) / f"{part}_2").is_dir():
                    _link_equal(second, borrowed / part, Path("..", "..", borrowed.name, part))
                    _link_equal(second, Path(scratch) / part, Path("..", part))
        _replace(Path(scratch), target)


def _link_equal(folder: Path, other: Path, route: Path) -> None:
    """Files that another folder has too become links; `route` leads to that folder from this one."""
    for file in folder.iterdir():
        theirs = other / file.name
        if not file.is_symlink() and theirs.is_file() and filecmp.cmp(file, theirs, shallow=False):
            file.unlink()
            file.symlink_to(route / file.name)


def _save_evaluation(work: Path, target: Path) -> None:
    model, tokenizer = clip.load_clip(work, "eval")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        model.half().save_pretrained(scratch, safe_serialization=True)
        _loads_as_float32(Path(scratch) / "config.json")
        tokenizer.save_pretrained(scratch)
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": RESOLUTION},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": RESOLUTION, "width": RESOLUTION},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        (Path(scratch) / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
        _replace(Path(scratch), target)


def _loads_as_float32(config: Path) -> None:
    """transformers takes the dtype of a checkpoint from its config; half precision is only how it is stored."""

    def mended(node: object) -> object:
        if isinstance(node, dict):
            return {k: "float32" if k in ("dtype", "torch_dtype") else mended(v) for k, v in node.items()}
        return node

    content = mended(json.loads(config.read_text()))
    config.write_text(json.dumps(content, indent=2) + "\n")


def _forgets_where_it_was(config: Path) -> None:
    """A tokenizer that was read from files says so when it is saved, and would differ from one that was built."""
    content = json.loads(config.read_text())
    kept = {key: value for key, value in content.items() if key not in ("is_local", "local_files_only")}
    config.write_text(json.dumps(kept, indent=2) + "\n")


def _replace(scratch: Path, target: Path) -> None:
    """Puts a finished directory in place of an older one; a reader meets one or the other, never half of one."""
    inside = [p for p in scratch.rglob("*") if not p.is_symlink()]
    for folder in (scratch, *(p for p in inside if p.is_dir())):
        folder.chmod(0o755)  # temporary folders are private
    for file in (p for p in inside if p.is_file()):
        file.chmod(0o644)
    fresh, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(scratch, fresh, symlinks=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.export", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder of checkpoints")
    parser.add_argument("--out", type=Path, default=ZOO_DIR, help="where models are written")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    export_ready(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
