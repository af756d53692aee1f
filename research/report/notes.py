"""What a reader of the page has to know of the state of a sweep's folder: what is missing, unfinished, or of another kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from research.labels import count
from research.report.times import out_of_line_notes
from research.results.read import Row, Sweep

_SHOWN = 3
_NOT_JOBS = {"plots", "wandb"}


def notes(sweep: Sweep) -> list[str]:
    """A line for each thing that is not as it should be."""
    found = [f"{line} and left out here; the numbers of all are in results.csv." for line in sweep.changed]
    missing = {row.job_id: gone for row in sweep.done if (gone := _missing(row))}
    if missing:
        found.append(
            f"{count(sum(missing.values()), 'image')} named in the records, but not in their folders ({_few(list(missing))}); "
            "their numbers are shown, their pictures cannot be."
        )
    sizes = Counter(size for row in sweep.done if (size := _size(row)) is not None)
    if len(sizes) > 1:
        text = ", ".join(f"{w}×{h} in {count(n, 'job')}" for (w, h), n in sizes.most_common(_SHOWN + 1))
        found.append(f"Images are of different sizes ({text}): scores of one size say little about another.")
    if out := out_of_line_notes(sweep):
        found.append(" ".join(out))
    unfinished = [folder.name for folder in _without_record(sweep.directory)]
    if unfinished:
        found.append(
            f"{count(len(unfinished), 'job folder')} without a result.json ({_few(unfinished)}): interrupted, or half deleted."
        )
    return found


def _missing(row: Row) -> int:
    if not row.images:
        return 0
    there: dict[Path, set[str]] = {}
    gone = 0
    for image in row.images:
        path = row.folder / image.file
        if path.parent not in there:
            there[path.parent] = _names(path.parent)
        gone += path.name not in there[path.parent] and not row.image_path(image).is_file()
    return gone


def _size(row: Row) -> tuple[int, int] | None:
    from PIL import Image

    for image in row.images:
        try:
            with Image.open(row.image_path(image)) as opened:
                return opened.size
        except (OSError, ValueError, SyntaxError):
            continue
    return None


def _without_record(directory: Path) -> list[Path]:
    """Folders that a job has begun to fill: with a config, images or a claim, and no record."""
    found = []
    for folder in sorted(directory.iterdir()):
        if folder.is_dir() and folder.name not in _NOT_JOBS and not folder.name.startswith("."):
            names = _names(folder)
            begun = {"config.yaml", "images", "partial.json", "traceback.txt"} & names
            if "result.json" not in names and begun and not any(n.startswith(".claim.") for n in names):
                found.append(folder)
    return found


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
