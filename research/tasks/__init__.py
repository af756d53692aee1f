"""Tasks: where the loop starts and what it is conditioned on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.tasks.depth_to_image import DepthToImage as DepthToImage
    from research.tasks.image_to_image import ImageToImage as ImageToImage
    from research.tasks.inpaint import Inpaint as Inpaint
    from research.tasks.interpolation import Interpolation as Interpolation
    from research.tasks.inversion import Inversion as Inversion
    from research.tasks.text_to_image import TextToImage as TextToImage
    from research.tasks.unconditional import Unconditional as Unconditional

__all__ = ["DepthToImage", "ImageToImage", "Inpaint", "Interpolation", "Inversion", "TextToImage", "Unconditional"]

# imported on first use, so that the checks of settings need no torch
__getattr__ = lazy_names(
    __name__,
    {
        "DepthToImage": "research.tasks.depth_to_image",
        "ImageToImage": "research.tasks.image_to_image",
        "Inpaint": "research.tasks.inpaint",
        "Interpolation": "research.tasks.interpolation",
        "Inversion": "research.tasks.inversion",
        "TextToImage": "research.tasks.text_to_image",
        "Unconditional": "research.tasks.unconditional",
    },
)
