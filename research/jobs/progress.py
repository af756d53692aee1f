"""What a person sees of running jobs: bars on a terminal, now and then a line in a log file or a pipe. All on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
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
    def job(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """Around one job. What it yields is called with steps done, steps in all, and a word on where the job is."""
        self.done += 1
        place = f"[{self.done}/{self.n_jobs}] " if self.n_jobs > 1 else ""
        if self.mode == "bars":
            yield from self._with_bar(label)
        elif self.mode == "lines":
            self._log.info("%s%s", place, label)
            yield self._lines(place)
        else:
            yield lambda done, total, where: None
        if self._sweep_bar is not None:
            self._sweep_bar.update()

    def elsewhere(self, label: str) -> None:
        """A job that another process has ended."""
        self.done += 1
        if self.mode == "lines":
            self._log.info("[%d/%d] %s, by another process", self.done, self.n_jobs, label)
        if self._sweep_bar is not None:
            self._sweep_bar.update()

    def ended(self, text: str, *, failed: bool) -> None:
        """How a job ended, in a line. Bars show that by themselves, unless it failed."""
        if self.mode == "lines" or (failed and self.mode == "bars"):
            self._log.info("    %s", text)

    def _with_bar(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        from tqdm import tqdm

        bar = tqdm(desc=label[:60], unit="step", position=int(self.n_jobs > 1), leave=False, dynamic_ncols=True)

        def report(done: int, total: int, where: str) -> None:
            bar.set_postfix_str(where, refresh=not total)
            if total:  # scoring has no steps: the bar stays full
                bar.total = total
                bar.update(done - bar.n)

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
