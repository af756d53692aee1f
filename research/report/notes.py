"""What a reader of the page has to know of the state of a sweep's folder: what is missing, unfinished, or of another kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError
from research.labels import count
from research.picture_files import check_pixels
from research.report.times import out_of_line_notes
from research.results.read import Row, Sweep

_SHOWN = 3
_NOT_JOBS = {"plots", "wandb"}


def notes(sweep: Sweep) -> list[str]:
    """A line for each thing that is not as it should be."""
    found = [f"{line} and left out here; the numbers of all are in results.csv." for line in sweep.changed]
    if altered := [row.job_id for row in sweep.rows if row.result.altered]:
        found.append(
            f"{count(len(altered), 'record')} altered after it was written ({_few(altered)}): the numbers are shown as they "
            "stand; the sweep makes such jobs again."
        )
    missing = {row.job_id: gone for row in sweep.done if (gone := _missing(row))}
    if missing:
        found.append(
            f"{count(sum(missing.values()), 'image')} named in the records, but not in their folders ({_few(list(missing))}); "
            "their numbers are shown, their pictures cannot be."
        )
    sizes: Counter[tuple[int, int]] = Counter()
    unshown: list[str] = []
    for row in sweep.done:
        size, problem = _size(row)
        sizes.update([size] if size else [])
        unshown += [problem] if problem else []
    if unshown:
        found.append(f"{count(len(unshown), 'job')} with images that cannot be shown. {_few(unshown)}")
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


def _size(row: Row) -> tuple[tuple[int, int] | None, str | None]:
    """The size of a job's images, by the first that has one; and why the first there is cannot be shown."""
    problem = None
    for image in row.images:
        if not os.path.lexists(row.image_path(image)):
            continue  # counted as missing
        try:
            size = row.image_size(image)
            check_pixels(f"{row.job_id}: {image.file}", size)
        except UserError as error:
            problem = problem or str(error)
            continue
        return size, problem
    return None, problem


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
