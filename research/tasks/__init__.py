"""Tasks: where the loop starts and what it is conditioned on."""

from research.tasks.text_to_image import TextToImage
from research.tasks.unconditional import Unconditional

__all__ = ["TextToImage", "Unconditional"]
