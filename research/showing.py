"""Pictures and settings as a notebook shows them. Needs no library: pictures are PIL images, used by their own methods."""

from __future__ import annotations

import base64
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

SIDE = 128  # pixels on the screen: smaller pictures are shown enlarged, as nobody sees much of 32
_LARGEST = 256  # larger ones are made smaller for the page, which keeps them
_SHOWN = 24  # pictures


def picture(image: Any, side: int = SIDE, caption: str = "") -> str:
    """A picture as HTML that carries it.

    Args:
        image: a PIL image.
        side: pixels of its longer side on the screen; enlarged pixels keep their edges.
        caption: what stands below.
    """
    width, height = image.size
    longer = max(width, height)
    if longer > _LARGEST:
        image = image.convert("RGB").resize(_at_most(width, height, _LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    shown = _at_most(width, height, side)
    text = escape(caption)
    below = f"<figcaption style='font-size:80%;width:{shown[0]}px;overflow-wrap:anywhere'>{text}</figcaption>"
    return (
        "<figure style='display:inline-block;margin:0 4px 4px 0;vertical-align:top'>"
        f"<img src='data:image/png;base64,{data}' width='{shown[0]}' height='{shown[1]}' alt='{text or 'picture'}' "
        f"style='{'image-rendering:pixelated' if longer < side else ''}'>{below if caption else ''}</figure>"
    )


def pictures(images: Sequence[Any], captions: Sequence[str] = (), side: int = SIDE, most: int = _SHOWN) -> str:
    """Pictures beside each other as HTML; of very many the first, and how many more there are."""
    words = [*captions, *[""] * len(images)]
    shown = "".join(picture(image, side, words[k]) for k, image in enumerate(images[:most]))
    more = f"<div>... and {len(images) - most} more</div>" if len(images) > most else ""
    return f"<div>{shown}</div>{more}"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as HTML, a column a key."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th style='text-align:left'>{escape(str(key))}</th>" for key in keys)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escape(number(row.get(key, '')))}</td>" for key in keys)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def card(title: str, rows: Mapping[str, Any]) -> str:
    """What there is to say of a thing as HTML: a title, and a row a fact; empty facts are left out."""
    lines = "".join(
        f"<tr><td style='text-align:left'>{escape(key)}</td><td style='text-align:left'>{escape(number(value))}</td></tr>"
        for key, value in rows.items()
        if value not in (None, "", [], {})
    )
    return f"<div><b>{escape(title)}</b><table>{lines}</table></div>"


def number(value: Any) -> str:
    """A value as a person reads it: floats with four digits."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def grid(images: Sequence[Any], columns: int | None = None, side: int | None = None, gap: int = 4) -> Any:
    """Pictures as one, row by row on white.

    Args:
        images: PIL images, one at least.
        columns: how many beside each other; by default as many as make it about square.
        side: pixels of the longer side of each; by default a whole multiple of their own that is 128 at least.
        gap: pixels between them.
    """
    columns = min(len(images), columns or math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    longer = max(max(image.size) for image in images)
    side = side or longer * max(1, math.ceil(SIDE / longer))
    sizes = [(round(image.size[0] * side / longer), round(image.size[1] * side / longer)) for image in images]
    wide, high = (max(1, *(size[axis] for size in sizes)) for axis in (0, 1))
    whole = images[0].convert("RGB").resize((columns * (wide + gap) - gap, rows * (high + gap) - gap))
    whole.paste((255, 255, 255), (0, 0, *whole.size))
    for k, (image, size) in enumerate(zip(images, sizes, strict=True)):
        down, right = divmod(k, columns)
        # the nearest pixel (0) where a picture is enlarged, a Lanczos filter (1) where it is not
        sized = image.convert("RGB").resize((max(1, size[0]), max(1, size[1])), 0 if side >= longer else 1)
        whole.paste(sized, (right * (wide + gap), down * (high + gap)))
    return whole


def show(thing: Any, image: Any) -> None:
    """Show a thing where the user looks: in a notebook as it shows itself, else its picture in the system's viewer."""
    if in_notebook():
        sys.modules["IPython"].display.display(thing)
    else:
        image.show()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return shell is not None and type(shell).__name__ not in ("TerminalInteractiveShell", "InteractiveShellEmbed")


def _at_most(width: int, height: int, side: int) -> tuple[int, int]:
    longer = max(width, height)
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))
