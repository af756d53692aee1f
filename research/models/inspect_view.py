"""A model directory under the names that libraries read by default: one variant of its weights is loaded and no other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from research.models.weights import plain_name


@contextlib.contextmanager
def plain_view(directory: Path, variant: str) -> Iterator[Path]:
    """A temporary folder of links to a model's (or a component's) files in which a variant's weights have plain names.

    Without a variant it is the directory itself. Files that were opened from the view stay readable after it is gone.
    """
    if not variant:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        view = Path(scratch, directory.name or "model")
        _link(directory.absolute(), view, variant, depth=1)
        yield view


def _link(folder: Path, view: Path, variant: str, depth: int) -> None:
    view.mkdir()
    for entry in folder.iterdir():
        if entry.is_dir():
            if depth:
                _link(entry, view / entry.name, variant, depth - 1)
        elif name := plain_name(folder, entry.name, variant):
            (view / name).symlink_to(entry)
