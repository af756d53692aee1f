"""What a reader of the page has to know of the state of a sweep's folder: what is missing, unfinished, or of another kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from research.labels import count
from research.report.columns import Measure
from research.results.read import Row, Sweep

_SHOWN = 3
_NOT_JOBS = {"plots", "wandb"}


def notes(sweep: Sweep) -> list[str]:
    """A line for each thing that is not as it should be."""
    found = []
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
    unfinished = [folder.name for folder in _without_record(sweep.directory)]
    if unfinished:
        found.append(
            f"{count(len(unfinished), 'job folder')} without a result.json ({_few(unfinished)}): interrupted, or half deleted."
        )
    return found


def provenance_notes(rows: Sequence[Row], columns: Sequence[Measure]) -> list[str]:
    """A line for each number that was not computed with the same things in all jobs, and what its letters mean."""
    found = []
    for measure in columns:
        kinds = measure.kinds(rows)
        if len(kinds) < 2:
            continue
        counts = Counter(kinds[measure.provenance(r)] for r in rows if measure.value(r) is not None)
        text = ", ".join(
            f"{letter}: {count(n, 'job')} ({_meant(rows, measure, kinds, letter)})"
            for letter, n in sorted(counts.items())
        )
        found.append(
            f"{measure.label} is not of one provenance: {text}. Only numbers with the same letter may be compared; "
            "best values, fronts and advice are among those of letter a."
        )
    return found


def _meant(rows: Sequence[Row], measure: Measure, kinds: dict[str, str], letter: str) -> str:
    """What sets the jobs of a letter apart, in a few words."""
    row = next(r for r in rows if measure.value(r) is not None and kinds[measure.provenance(r)] == letter)
    if measure.key == "seconds_per_image":
        return measure.provenance(row) or "device unknown"
    info = row.info(measure.key)
    words = []
    for key in ("model", "features", "reference", "n_images"):
        value = info.get(key)
        name = value.get("name") or str(value.get("sha256") or "")[:8] if isinstance(value, dict) else value
        if name not in (None, ""):
            words.append(f"{key.replace('_', ' ')} {name}")
    return ", ".join(words) or "nothing recorded"


def _missing(row: Row) -> int:
    if not row.images:
        return 0
    there: dict[Path, set[str]] = {}
    gone = 0
    for image in row.images:
        path = row.folder / str(image["file"])
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
