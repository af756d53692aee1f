"""Embedded models: small, genuine diffusers directories that run in seconds on a CPU.

`emoji` is a text-to-image latent diffusion model, `emoji-inpaint` and `emoji-depth` are its relatives for inpainting and
depth-to-image, `emoji-flow` is a flow-matching transformer on its latents, `emoji-pixel` is an unconditional pixel-space
model, and `emoji-eval` the CLIP model that scores pictures and never conditions them.  Pictures to start from come along.
How they were made is in TRAINING.md.
This module imports nothing heavy, so that asking for a path costs nothing.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PICTURES_DIR", "ZOO_DIR", "is_embedded", "picture_names", "picture_path", "zoo_names", "zoo_path"]

ZOO_DIR = Path(__file__).resolve().parent
PICTURES_DIR = ZOO_DIR / "pictures"


def zoo_names() -> list[str]:
    """Names of the embedded diffusion pipelines, sorted."""
    return sorted(entry.name for entry in ZOO_DIR.iterdir() if (entry / "model_index.json").is_file())


def zoo_path(name: str) -> Path | None:
    """The directory of an embedded model (pipelines and evaluation models), or None if there is none of that name."""
    if not name or Path(name).name != name or name in {".", ".."}:
        return None
    directory = ZOO_DIR / name
    found = any((directory / marker).is_file() for marker in ("model_index.json", "config.json"))
    return directory if found else None


def is_embedded(name: str) -> bool:
    """Whether a name is that of an embedded model, evaluation network or reference."""
    return zoo_path(name) is not None or (ZOO_DIR / "references" / f"{name}.safetensors").is_file()


def picture_names() -> list[str]:
    """Names of the pictures that come with the package, sorted."""
    return sorted(file.stem for file in PICTURES_DIR.glob("*.png"))


def picture_path(name: str) -> Path | None:
    """The file of a picture that comes with the package, or None if there is none of that name."""
    return PICTURES_DIR / f"{name}.png" if name in picture_names() else None
