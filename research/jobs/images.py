"""Images on disk: PNG files that carry what makes them again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from research.files import read_plain
from research.jobs.record import write
from research.picture_files import errors_named, loaded

CHUNK = "research"
POINT = "point"  # of a picture of a point: its numbers, see `research.points`


def save(image: Image.Image, path: Path, recipe: Mapping[str, Any]) -> str:
    """Write an image as PNG with its recipe as JSON in the text chunk "research"; return the SHA-256 of the file."""
    info = PngInfo()
    if POINT in image.info:
        info.add_text(POINT, str(image.info[POINT]))
    info.add_itxt(CHUNK, json.dumps(recipe, ensure_ascii=False, default=str))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    content = buffer.getvalue()
    write(path, content)
    return hashlib.sha256(content).hexdigest()


def save_picture(picture: Image.Image | Sequence[Image.Image], path: Path) -> Path:
    """Write a picture as PNG, or several as an animated GIF, and return its path with the ending.

    A frame is shown for its ``info["duration"]`` in milliseconds, for 200 where it has none.
    """
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        path = path.with_suffix(".png")
        picture.save(buffer, format="PNG")
    else:
        path = path.with_suffix(".gif")
        first, *more = picture
        shown = [frame.info.get("duration", 200) for frame in picture]
        first.save(buffer, format="GIF", save_all=True, append_images=more, duration=shown, loop=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, buffer.getvalue())
    return path


class SavedImages(Sequence[Image.Image]):
    """The images of a job as they were saved. Many or large ones are read back from their files when they are asked for."""

    def __init__(self, bytes_in_memory: int = 512 << 20):
        self._left = bytes_in_memory
        self._items: list[Image.Image | Path] = []

    def add(self, image: Image.Image, path: Path, recipe: Mapping[str, Any]) -> str:
        """Save an image (see `save`) as the next one of the job."""
        digest = save(image, path, recipe)
        self._left -= image.width * image.height * len(image.getbands())
        self._items.append(image if self._left >= 0 else path)
        return digest

    def add_saved(self, path: Path) -> None:
        """Count an image that was saved before as the next one of the job."""
        self._items.append(path)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> list[Image.Image]: ...
    def __getitem__(self, place: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        item = self._items[place]
        if isinstance(item, Image.Image):
            return item
        return loaded(item.read_bytes())


def recipe(path: str | Path) -> dict[str, Any]:
    """What makes an image again, read from its file: prompt, seed, model, scheduler, guidance, steps and versions.

    Raises:
        KeyError: the file carries none.
        ValueError: it carries something else.
        ConfigError: it is no picture, or a broken one.
    """
    file = Path(path)
    with errors_named(str(file), "it"):
        image = loaded(read_plain(file.parent, file.name))
    try:
        found = json.loads(image.info[CHUNK])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return found
