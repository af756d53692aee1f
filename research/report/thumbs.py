"""Which images stand for a job, and how large they are shown."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from research.errors import UserError
from research.results.read import Row

if TYPE_CHECKING:
    from PIL import Image

    from research.jobs.record import ImageRecord

PER_CELL = 8
PIXELS_AT_MOST = 40_000_000
PAGE_BYTES_AT_MOST = 3_100_000  # of all thumbnails in a page, in base64
PAGE_SIDES = (96, 64, 48, 32)  # pixels; the largest that leaves room for a picture of each job
Thumb = tuple[str, int, int]  # data URI, width, height
Encoded = dict[tuple[str, int], Thumb]  # by job id and place among its images


@dataclass(frozen=True)
class Chosen:
    """The images shown of every job, by prompt and seed, in a grid of `columns`; `source` is the largest side in pixels."""

    images: list[tuple[str, int]]
    columns: int
    source: int

    @property
    def rows(self) -> int:
        return math.ceil(len(self.images) / self.columns)

    def of(self, row: Row) -> list[ImageRecord | None]:
        """The same images of one job: by prompt and seed, else by their place (a sweep over seeds or prompts)."""
        found = row.images
        by_key = {(i.prompt or "", i.seed): i for i in found}
        hits = [by_key.get(key) for key in self.images]
        if any(hits):
            return hits
        places = _spread(found)
        return [places[k] if k < len(places) else None for k in range(len(self.images))]


def choose_images(rows: Sequence[Row]) -> Chosen:
    """Up to 8 images that most jobs have: first one of each prompt, then more seeds of them."""
    counts: dict[tuple[str, int], int] = {}
    for row in rows:
        for image in row.images:
            key = (image.prompt or "", image.seed)
            counts[key] = counts.get(key, 0) + 1
    most = max(counts.values(), default=0)
    first = next((row for row in rows if row.images), None)
    common = [key for key, count in counts.items() if count == most]
    if first is None or most < 2:  # nothing is shared: take the first job's, others follow by their place
        common = [(i.prompt or "", i.seed) for i in (first.images if first else [])]
    images = [common[i] for i in _one_of_each([prompt for prompt, _ in common])[:PER_CELL]]
    columns = len(images) if len(images) < 4 else math.ceil(len(images) / 2)
    return Chosen(images, max(1, columns), _source_size(rows))


def thumb_size(chosen: Chosen, cells: int) -> int:
    """Side of a thumbnail: a whole multiple of a small image, a fraction of a large one, less for very many cells."""
    wanted = 64 if len(chosen.images) > 3 else 96
    room = math.sqrt(PIXELS_AT_MOST / max(1, cells * len(chosen.images)))
    wanted = max(24, min(wanted, int(room)))
    if chosen.source <= wanted:
        return chosen.source * max(1, wanted // chosen.source)
    return wanted if chosen.source > 2 * wanted else chosen.source if chosen.source <= room else wanted


def encode_thumbs(rows: Sequence[Row], chosen: Chosen, known: dict[Hashable, Thumb] | None = None) -> Encoded:
    """Thumbnails to stand in a page, ``{(job id, place in its images): (data URI, width, height)}``, within the page's bytes.

    Every job gets its first image before any gets its second. Small images go in as they are, large ones scaled down.

    Args:
        known: thumbnails of an earlier call by file, time of modification and side; what is new is added.
    """
    known = {} if known is None else known
    wanted = [(row, [(row.images.index(i), i) for i in chosen.of(row) if i is not None]) for row in rows]
    wanted = [(row, found) for row, found in wanted if found]
    side = _page_side(wanted, chosen.source)
    encoded: Encoded = {}
    left = PAGE_BYTES_AT_MOST
    for turn in range(PER_CELL):
        for row, found in wanted:
            if turn >= len(found):
                continue
            place, image = found[turn]
            thumb = _encoded(row, image, side, known)
            if thumb is None:
                continue
            left -= len(thumb[0])
            if left < 0:
                return encoded
            encoded[row.job_id, place] = thumb
    return encoded


def _page_side(wanted: Sequence[tuple[Row, list[tuple[int, ImageRecord]]]], source: int) -> int:
    """The side at which all wanted images, or at least one of each job, go into the page; tried on a few of them."""
    sample = wanted[:: max(1, len(wanted) // 6)][:6]
    for count in (max((len(found) for _, found in wanted), default=1), 1):
        for side in PAGE_SIDES:
            sizes = [
                len(thumb[0]) for row, found in sample if (thumb := _encoded(row, found[-1][1], side, {})) is not None
            ]
            fits = not sizes or sum(sizes) / len(sizes) * len(wanted) * count <= PAGE_BYTES_AT_MOST
            if fits and (side >= min(48, source) or count == 1):
                return side
    return PAGE_SIDES[-1]


def _encoded(row: Row, record: ImageRecord, side: int, known: dict[Hashable, Thumb]) -> Thumb | None:
    from PIL import Image

    path = row.image_path(record)
    try:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, side)
        if key in known:
            return known[key]
        image = row.read_image(record)
    except (OSError, UserError):
        return None
    if small := max(image.size) <= side:
        small = max(image.size) <= 40  # a model's own pixels, shown as such
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small, quality=60 if small else 78, method=4)
    known[key] = (f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)
    return known[key]


def load_thumb(row: Row, record: ImageRecord, side: int) -> Image.Image | None:
    """An image fitted into a square of `side` pixels, or None if it cannot be read.

    Small images grow by whole factors with hard edges: what is seen are the model's own pixels.
    """
    from PIL import Image

    try:
        image = row.read_image(record)
    except UserError:
        return None
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = side / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _source_size(rows: Sequence[Row]) -> int:
    for row in rows:
        for image in row.images:
            try:
                return max(row.image_size(image))
            except UserError:
                continue
    return 64


def _spread(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    return [images[i] for i in _one_of_each([i.prompt or "" for i in images])]


def _one_of_each(prompts: Sequence[str]) -> list[int]:
    """Places ordered so that every prompt comes once before any comes twice."""
    seen: dict[str, int] = {}
    rounds = []
    for place, prompt in enumerate(prompts):
        seen[prompt] = seen.get(prompt, 0) + 1
        rounds.append((seen[prompt], place))
    return [place for _, place in sorted(rounds)]
