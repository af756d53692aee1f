"""What can go wrong with a batch: memory runs out, someone asks to stop, another process took the job over."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.jobs import claims, signals

if TYPE_CHECKING:
    from research.sampling import SampleResult
    from research.sampling.interfaces import Task
    from research.sampling.result import BatchSampler

_log = logging.getLogger(__name__)
# how allocators say it that raise a plain RuntimeError: torch on a CPU, on a GPU through cuBLAS and cuDNN, on MPS, on XPU
_WORDS = (
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "status_alloc_failed",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the process; also one that was raised from such an error."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS):
            return True
        error = error.__cause__
    return False


def check(folder: Path) -> None:
    """Between two batches: see that the job may go on.

    Raises:
        Interrupted: someone asked to stop.
        ClaimLost: another process took the job over.
    """
    signals.check()
    check_claim(folder)


def check_claim(folder: Path) -> None:
    """Before something that counts is written: see that the job is still this process's, if it claimed it.

    Raises:
        ClaimLost: another process took the job over, or its folder was taken away (`FolderGone`).
    """
    if own := claims.held(folder):
        own.check()


def batches_that_fit(
    sampler: BatchSampler,
    task: Task,
    *,
    seeds: Sequence[int],
    steps: int,
    size: int,
    rows: Sequence[int] | None = None,
    first: int = 0,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
    halved: Callable[[dict[str, Any]], None],
) -> Iterator[tuple[range, SampleResult]]:
    """Sample images batch by batch; where memory runs out, batches are halved and the images of that batch made anew.

    An image depends on its own seed and not on its batch, so that it stays the same.

    Args:
        size: images at a time, to begin with, or candidates of a sampler that makes several of each.
        rows: which images to make, in order, see `LoopSampler.batches`; all by default.
        first: the place among them of the first to make; those before it are there already.
        halved: called with what is recorded of a batch that did not fit: rows, batch_size, halved_to, error.

    Raises:
        Exception: what the sampler raises, and running out of memory with a single image.
    """
    count = len(seeds) if rows is None else len(rows)
    while first < count:
        said = ""
        batches = sampler.batches(
            task, seeds=seeds, steps=steps, batch_size=size, progress=progress, rows=rows, first=first
        )
        while first < count:
            try:
                result = next(batches)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if min(size, (count - first) * sampler.candidates) <= sampler.images_together:
                    error.add_note("a single image at a time does not fit")
                    raise
                said = " ".join(str(error).split())[:200] or type(error).__name__
                break
            places = range(first, first + len(result.images))
            first = places.stop
            yield places, result
        if said:
            # outside of the except block: the error holds the frames, and these hold the tensors
            del batches
            failed = min(size, (count - first) * sampler.candidates)
            size = max(sampler.images_together, failed // 2)
            halved(
                {"rows": [first, min(first + failed, count)], "batch_size": failed, "halved_to": size, "error": said}
            )
            _log.warning("out of memory with %d images at a time; it goes on with %d", failed, size)
            free_memory()


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
