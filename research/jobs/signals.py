"""Ctrl-C and SIGTERM: the batch of images under way is finished, then the process ends; asked again, it ends at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE = 20.0  # seconds
INTERRUPTED = 130  # the exit code
_PATIENCE = 3.0  # seconds that a process which should end at once has for it: code that hears no signal may hold it up
_log = logging.getLogger(__name__)
_active: Stop | None = None


class Interrupted(KeyboardInterrupt):
    """Asked to stop; what is on disk is whole."""


class Stop:
    """What signals asked for, while `listening`."""

    def __init__(self, grace: float):
        self.grace = grace
        self.asked = False
        self.by = 0.0  # monotonic time when the process should have ended; 0 without a limit
        self._over = threading.Event()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            self._force(_PATIENCE)
            raise Interrupted
        if self.asked:  # SIGTERM to the group and to the process is one wish
            return
        self.asked = True
        if number == signal.SIGINT:
            _log.warning("interrupted: the images under way are finished first; once more ends at once")
        else:
            _log.warning("SIGTERM: the images under way have %g s to be finished", self.grace)
            self.by = time.monotonic() + self.grace
            self._force(self.grace)

    def _force(self, seconds: float) -> None:
        threading.Thread(target=self._end, args=(seconds,), name="grace", daemon=True).start()

    def _end(self, seconds: float) -> None:
        if not self._over.wait(seconds):
            # nothing that counts is half-written at any time, and the claims of a dead process are taken over
            os._exit(INTERRUPTED)

    def over(self) -> None:
        self._over.set()


def check() -> None:
    """Between two batches and between two jobs: go on, unless asked to stop.

    Raises:
        Interrupted: asked to stop.
    """
    if _active is not None and _active.asked:
        raise Interrupted


def wait(seconds: float) -> None:
    """Sleep, unless asked to stop.

    Raises:
        Interrupted: asked to stop.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.1))
    check()


def seconds_left(at_most: float) -> float:
    """How long something may take now: `at_most`, or what is left of the grace time."""
    if _active is None or not _active.by:
        return at_most
    return max(0.0, min(at_most, _active.by - time.monotonic()))


@contextlib.contextmanager
def listening(grace: float = GRACE) -> Iterator[None]:
    """While it is open, SIGINT and SIGTERM ask `check` to stop. Outside of the main thread signals stay as they are.

    Args:
        grace: seconds after SIGTERM until the process ends, done or not.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _active = Stop(grace)
    before: dict[int, Any] = {}
    for number in map(int, (signal.SIGINT, signal.SIGTERM)):
        # what a shell told to be ignored stays ignored
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop.on_signal)
    try:
        yield
    finally:
        stop.over()
        for number, handler in before.items():
            signal.signal(number, handler)
        _active = None
