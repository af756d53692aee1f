"""Picture files: found by path, URL or name in the zoo, and opened with a limit of their size, as one frame."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from research import downloads, zoo
from research.checks import check_whole_number
from research.errors import ConfigError, nearest
from research.picture_modes import Say, quiet

ACCEPTED = (
    "a path, a URL (https://...), a PIL image, an array [H, W, 3] or a tensor [3, H, W] (uint8, or floats from 0 to 1), "
    "or a list with one an image"
)
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
)  # what counts as a picture in a folder
MOST_PIXELS = 200_000_000  # by default; in memory a pixel takes 4 bytes, and while it is converted twice that
_SEVERAL = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "FLI")
_most_pixels = MOST_PIXELS
_opening = threading.RLock()


def limit_pixels(most: int, key: str = "runtime.max_pixels") -> None:
    """Set how many pixels a picture may have in this process (``runtime.max_pixels``).

    Raises:
        ConfigError: no whole number from 1.
    """
    global _most_pixels
    _most_pixels = check_whole_number(key, most, least=1)


def find(key: str, name: str | Path) -> Path:
    """The file of a path, of a URL, which is fetched if it was not before, or of "zoo:NAME".

    Raises:
        ConfigError: there is none, or it cannot be fetched.
    """
    text = str(name)
    if text.startswith("zoo:"):
        found = zoo.picture_path(text.removeprefix("zoo:"))
        if found is None:
            names = ", ".join(zoo.picture_names())
            near = nearest(text.removeprefix("zoo:"), zoo.picture_names())
            raise ConfigError(f"{key}: the zoo has no picture {text!r}.{near} Accepted: zoo: and one of {names}.")
        return Path(found)
    if downloads.is_url(text):
        return downloads.fetched(key, text, lambda content, kind: _check_fetched(key, text, content, kind))
    if downloads.is_other_url(text):
        raise ConfigError(f"{key}: found the address {text!r}; accepted are those of http and https, or a file.")
    path = Path(name).expanduser()
    if not text or "\0" in text or not path.exists():
        raise ConfigError(f"{key}: the file {text!r} does not exist; accepted is {ACCEPTED}.")
    if not path.is_file():
        raise ConfigError(f"{key}: {text!r} is no file; accepted is {ACCEPTED}.")
    return path


def open_picture(key: str, name: str | Path, *, say: Say = quiet) -> Image.Image:
    """The picture in a file, turned as its EXIF data say, of an animation the first frame.

    Args:
        key: how messages call it.
        name: a path, a URL or "zoo:NAME".
        say: told of further frames or pages.

    Raises:
        ConfigError: the file is missing, no picture, too large, or broken.
    """
    path = find(key, name)
    with errors_named(key, str(name)), path.open("rb") as stream:
        image = loaded(stream, say=say)
        ImageOps.exif_transpose(image, in_place=True)
        return image


def loaded(source: BinaryIO | bytes, *, say: Say = quiet) -> Image.Image:
    """The picture that a stream or bytes hold, read whole, of an animation the first frame. It is not turned.

    Raises:
        ValueError: it is too large.
        OSError, SyntaxError, and whatever else decoders raise: it is no picture, or a broken one.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _first_frame(stream, say)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            pass  # larger than Pillow's own limit, and perhaps not than the project's
        stream.seek(0)
        with _pillows_limit(None), Image.open(stream) as image:
            size = image.size
        _check_size(size)
        stream.seek(0)
        with _pillows_limit(_most_pixels):
            return _first_frame(stream, say)


def _first_frame(stream: BinaryIO, say: Say) -> Image.Image:
    with Image.open(stream) as image:
        _check_size(image.size)
        # phones keep previews beside a picture (MPO), icons their sizes: these are no frames
        frames = getattr(image, "n_frames", 1) if image.format in _SEVERAL else 1
        if frames > 1:
            say(f"the first of its {frames} {'pages' if image.format == 'TIFF' else 'frames'} is used")
            image.seek(0)
        image.load()
        kept = image.copy()
        kept.format = image.format  # whether values are exact depends on it
        return kept


def picture_size(source: BinaryIO | bytes | Path) -> tuple[int, int]:
    """Width and height of the picture in a file, by what stands at its beginning; whatever its size.

    Raises:
        OSError, SyntaxError, ValueError: it is no picture.
    """
    stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    with _pillows_limit(None), Image.open(stream) as image:
        return image.size


@contextmanager
def errors_named(key: str, name: str) -> Iterator[None]:
    """What decoders raise becomes a ConfigError in one line that names the key and the file."""
    try:
        yield
    except ConfigError:
        raise
    except UnidentifiedImageError:
        raise ConfigError(f"{key}: {name} is no picture that Pillow can read.") from None
    except MemoryError:
        raise ConfigError(f"{key}: {name} does not fit into memory.") from None
    # what decoders raise on broken files is no closed list
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{key}: {name} cannot be read as a picture: {reason}") from error


@contextmanager
def _pillows_limit(most: int | None) -> Iterator[None]:
    """Pillow's own limit of the size of pictures, which is one for the process, is another for a moment."""
    with _opening:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = most
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def check_pixels(key: str, size: tuple[int, int]) -> None:
    """Check that a picture has no more pixels than are decoded.

    Raises:
        ConfigError: it has.
    """
    try:
        _check_size(size)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}.") from None


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > _most_pixels:
        raise ValueError(
            f"found {width} x {height} pixels, {width * height / 1e6:.0f} million; accepted are up to "
            f"{_most_pixels / 1e6:g} million (runtime.max_pixels)"
        )


def _check_fetched(key: str, url: str, content: bytes, kind: str) -> None:
    try:
        picture_size(content)
    except Exception:
        raise ConfigError(
            f"{key}: {url} holds no picture that Pillow can read, the server calls it {kind}; accepted is the address of the "
            "picture itself."
        ) from None
