"""Text on the contact sheet: fonts that come with the libraries, measuring, wrapping."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def font(text: str, size: int) -> Any:
    """Pillow's own font, which has little beyond ASCII, or for other text matplotlib's, which covers more scripts."""
    return _font(size, all(c.isascii() or c in "…±·" for c in text))


@lru_cache(maxsize=32)
def _font(size: int, plain: bool) -> Any:
    from PIL import ImageFont

    if plain:
        return ImageFont.load_default(size=size)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size - 1)


def text_width(text: str, size: int) -> int:
    """Width in pixels, rounded up."""
    return int(font(text, size).getlength(text)) + 1


def ellipsis(text: str, size: int, width: int) -> str:
    """The text, cut to `width` pixels with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a word too long for a line is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [ellipsis(line.strip(), size, width) for line in lines]
