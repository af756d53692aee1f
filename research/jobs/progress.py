"""What a person sees of running jobs: bars on a terminal, now and then a line in a log file or a pipe. All on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LOGGER = "research"
_SECONDS_BETWEEN_LINES = 15.0


class _BesideBars(logging.Handler):
    """Writes log lines to stderr, above the bars and not through them."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """Show the project's own log lines; libraries speak only from warnings up."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, _BesideBars) for handler in logger.handlers):
        logger.addHandler(_BesideBars())
    logger.setLevel(logging.INFO)
    logger.propagate = False


class StepsMade:
    """What one job tells its observer of its steps. It goes up, and ends at all of them, whatever happens to the batches on
    the way: those that a resumed job has already, those that are halved where memory runs out, a last one that is smaller.

    Args:
        observer: called with steps done, steps in all, and a word on where the job is.
        n_images: images to be made, those of all batches.
        size: images at a time, as batches are planned.
        steps: the user's steps, which are the steps of a batch as long as none has been made.
        where: what follows the number of a batch.
    """

    def __init__(
        self, observer: Callable[[int, int, str], None], n_images: int, size: int, steps: int, where: str = ""
    ):
        self.observer, self.n_images, self.size, self.where = observer, n_images, size, where
        self.before = 0  # images that were made under numbers of their own, see `add`
        self._steps = steps

    @property
    def n_batches(self) -> int:
        return -(-self.n_images // self.size)

    def __call__(self, done: int, total: int, info: Mapping[str, Any]) -> None:
        """As the loop calls it: steps done of the batch's, of how many, and ``places``, which of the images are in the batch."""
        self._steps = max(total, 1)
        first = self.before + info["places"][0]
        images = first + len(info["places"]) * done / self._steps
        batch = first // self.size + 1
        in_all = self.n_batches * self._steps
        made = round(in_all * images / self.n_images)
        self.observer(made, in_all, f"batch {batch} of {self.n_batches}{self.where}")

    def add(self, n_images: int) -> None:
        """So many images are made; the places of the next ones count from 0 again."""
        self.before += n_images

    def complete(self) -> None:
        """All images are there: of a job that had none left to make, or whose images need no step, nothing was heard before."""
        in_all = self.n_batches * self._steps
        self.observer(in_all, in_all, f"batch {self.n_batches} of {self.n_batches}{self.where}")


class Progress:
    """One bar for the sweep and one for the job that runs.

    Args:
        mode: "auto" (bars if stderr is a terminal, lines if not), "bars", "lines" or "none".
        n_jobs: jobs that are going to run.
    """

    def __init__(self, mode: str, n_jobs: int):
        self.mode = mode if mode != "auto" else "bars" if sys.stderr.isatty() else "lines"
        self.n_jobs = n_jobs
        self.done = 0
        self._log = logging.getLogger(LOGGER)
        self._sweep_bar: Any = None

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Around all jobs."""
        if self.mode == "bars" and self.n_jobs > 1:
            from tqdm import tqdm

            self._sweep_bar = tqdm(total=self.n_jobs, desc="sweep", unit="job", position=0, dynamic_ncols=True)
        try:
            yield
        finally:
            if self._sweep_bar is not None:
                self._sweep_bar.close()
                self._sweep_bar = None

    @contextmanager
    def job(self, label: str, count: int = 1) -> Iterator[Callable[[int, int, str], None]]:
        """Around one job, or `count` that are run as one; they count as ended if nothing is raised.

        What it yields is called with steps done, steps in all, and a word on where the job is.
        """
        last = self.done + count
        which = f"{self.done + 1}-{last}" if count > 1 else f"{last}"
        place = f"[{which}/{self.n_jobs}] " if self.n_jobs > 1 else ""
        if self.mode == "bars":
            yield from self._with_bar(label)
        elif self.mode == "lines":
            self._log.info("%s%s", place, label)
            yield self._lines(place)
        else:
            yield lambda done, total, where: None
        self._ended(count)

    def elsewhere(self, label: str) -> None:
        """A job that another process has ended."""
        self._ended(1)
        if self.mode == "lines":
            self._log.info("[%d/%d] %s, by another process", self.done, self.n_jobs, label)

    def more(self, count: int) -> None:
        """So many jobs more are to be run than were counted at first."""
        self.n_jobs += count
        if self._sweep_bar is not None:
            self._sweep_bar.total += count
            self._sweep_bar.refresh()

    def ended(self, text: str, *, failed: bool) -> None:
        """How a job ended, in a line. Bars show that by themselves, unless it failed."""
        if self.mode == "lines" or (failed and self.mode == "bars"):
            self._log.info("    %s", text)

    def _ended(self, count: int) -> None:
        self.done += count
        if self._sweep_bar is not None:
            self._sweep_bar.update(count)

    def _with_bar(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        from tqdm import tqdm

        bar = tqdm(desc=label[:60], unit="step", position=int(self.n_jobs > 1), leave=False, dynamic_ncols=True)

        def report(done: int, total: int, where: str) -> None:
            bar.set_postfix_str(where, refresh=not total)
            if total:  # scoring has no steps: the bar stays full
                bar.total = total
                bar.update(done - bar.n)
                if done == total:
                    bar.refresh()  # tqdm leaves out what follows too soon: the bar would stand short while images are scored

        try:
            yield report
        finally:
            bar.close()

    def _lines(self, place: str) -> Callable[[int, int, str], None]:
        last = time.monotonic()

        def report(done: int, total: int, where: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                steps = f"{done} of {total} steps, " if total else ""
                self._log.info("%s  %s%s", place, steps, where)

        return report
