"""Pictures that show what a task did: rows of before and after."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

_ROWS, _SIDE, _GAP = 8, 128, 4


def side_by_side(rows: Sequence[Sequence[Image.Image | None]], *, most: int = _ROWS) -> Image.Image:
    """Pictures in rows on white, the first ``most`` rows of them; None leaves a place empty.

    All are brought to the size of the first, which is enlarged without blur if it is small.
    """
    rows = [list(row) for row in rows[:most]]
    first = next(image for row in rows for image in row if image is not None)
    times = max(1, -(-_SIDE // max(first.size)))
    width, height = first.width * times, first.height * times
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                resized = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(resized, (_GAP + x * (width + _GAP), _GAP + y * (height + _GAP)))
    return sheet


def enlarged(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures for an animation, small ones enlarged without blur."""
    times = max(1, -(-_SIDE // max(images[0].size)))
    return [i.convert("RGB").resize((i.width * times, i.height * times), Image.Resampling.NEAREST) for i in images]
