"""A progress bar for Python: in a notebook its own kind, on a terminal a line, and nothing where nobody looks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from research.showing import in_notebook

_DELAY = 0.5  # seconds: what is over sooner shows none


def somebody_looks() -> bool:
    """Whether bars would be seen: in a notebook, or on a terminal."""
    return in_notebook() or bool(getattr(sys.stderr, "isatty", bool)())


def bar(**settings: Any) -> Any:
    """A bar of tqdm for where this runs; in a notebook without ipywidgets a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says that ipywidgets is missing
        from tqdm.auto import tqdm

    return tqdm(**{"dynamic_ncols": True, **settings})


class ProgressBar:
    """The steps of a call of a sampler, batch after batch; it is called as the loop tells its progress.

    Args:
        n_images: in all.
        title: what stands before the bar.
    """

    def __init__(self, n_images: int, title: str = ""):
        self.n_images = max(n_images, 1)
        self._title, self._before, self._last, self._batches = title, 0, 0, 1
        self._bar: Any = None

    def __call__(self, done: int, total: int, info: dict[str, Any]) -> None:
        """Steps done of a batch's, of how many, and ``places``, which of the images are in the batch."""
        if self._bar is None:
            self._batches = max(1, -(-self.n_images // len(info["places"])))
            self._bar = bar(total=self._batches * total, desc=self._title, unit="step", delay=_DELAY, leave=False)
        if done < self._last:
            self._before += self._last
        self._last = done
        self._bar.total = max(self._bar.total, self._before + done)
        self._bar.update(self._before + done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def told(
    progress: Callable[[int, int, dict[str, Any]], None] | bool | None, seeds: Any, title: str
) -> Iterator[Callable[[int, int, dict[str, Any]], None] | None]:
    """Whom a call of a sampler tells its progress: a function that is given; a bar for True, and for None where somebody looks;
    else nobody.

    Args:
        progress: what was asked for.
        seeds: one an image; whatever has no length is one image.
        title: what stands before a bar.
    """
    if progress is not None and not isinstance(progress, bool):
        yield progress
    elif somebody_looks() if progress is None else progress:
        shown = ProgressBar(len(seeds) if isinstance(seeds, Sized) else 1, title)
        try:
            yield shown
        finally:
            shown.close()
    else:
        yield None
