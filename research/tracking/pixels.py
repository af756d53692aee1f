"""Pictures without what their files say beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pixels(file: Path) -> Any:
    """A PIL picture of a file's pixels alone: the recipe that an image file carries may name local paths.

    Raises:
        OSError: the file is gone or no picture.
    """
    from PIL import Image

    with Image.open(file) as opened:
        plain = opened.convert(opened.mode if opened.mode in ("RGB", "RGBA", "L") else "RGB")
    plain.info = {}
    return plain
