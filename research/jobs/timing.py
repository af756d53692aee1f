"""Wall-clock and memory of a job."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PHASES = ("load", "encode", "denoise", "decode", "metrics")


class Stopwatch:
    """Seconds by phase. Work on a GPU is waited for at both ends of a phase, or it would be counted to the next one."""

    def __init__(self) -> None:
        self._start: float | None = time.perf_counter()
        self._spent = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def pause(self) -> None:
        """Let the time that passes from now on count for others, until `resume`."""
        if self._start is not None:
            self._spent += time.perf_counter() - self._start
            self._start = None

    def resume(self, spent: float = 0.0) -> None:
        """Let time count again, and add so many seconds of what passed."""
        self._spent += spent
        if self._start is None:
            self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str, device: Any = None) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronize(device)
            self.seconds[name] += time.perf_counter() - start

    def add(self, timings: dict[str, float]) -> None:
        for name, seconds in timings.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timings(self) -> dict[str, float]:
        """Seconds by phase and in total; the total holds writing files too."""
        running = 0.0 if self._start is None else time.perf_counter() - self._start
        total = self._spent + running
        return {name: round(seconds, 6) for name, seconds in {**self.seconds, "total": total}.items()}


def synchronize(device: Any) -> None:
    """Wait until a GPU has done what it was given."""
    if getattr(device, "type", None) == "cuda":
        import torch

        torch.cuda.synchronize(device)


def reset_peak_memory(device: Any) -> None:
    if getattr(device, "type", None) == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: Any) -> int:
    """Of a GPU: the most torch had allocated since the last reset. Of a CPU: the most the process has ever held."""
    if getattr(device, "type", None) == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
