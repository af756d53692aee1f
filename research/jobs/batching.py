"""How many images to sample at a time: probed once a process for each model and size of latents, and capped by memory.

An image has noise of its own and is the same in any batch, to rounding. The more images a batch has the better, but for
caches: a size is taken as the largest that fits and is not clearly slower, an image, than a smaller one.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.jobs.faults import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from research.sampling import LoopSampler

_LARGEST = 64  # images
_STEPS = 2  # of a probe: the first warms up
_FIRST = 4  # the smallest size that is tried, unless latents are large
_LARGE = 65536  # elements of the latents of a batch from which memory may end: four images of Stable Diffusion
_WORTH = 10  # a probe is made for so many times the work that it takes itself
_SLOWER = 1.25  # times as long an image as with the best size: clearly slower
_OF_MEMORY = 0.8  # of what is free
# by model and shape: up to which size was looked, and seconds an image and step of each size that fits
_known: dict[tuple[Any, ...], tuple[int, dict[int, float]]] = {}
_log = logging.getLogger(__name__)


class _Enough(Exception):
    """The probe has seen what it needs."""


def best_batch_size(sampler: LoopSampler, task: Any, seeds: Sequence[int], steps: int, count: int) -> int:
    """Images at a time for a task that has been checked, if ``count`` are to be made.

    Args:
        sampler, task, seeds, steps: of the job, see `LoopSampler.batches`.
        count: more than there are seeds, where jobs are sampled together.
    """
    shape = tuple(task.latent_shape(sampler.model))
    elements = shape[0] * shape[1] * shape[2]
    model, branches = sampler.model, 2 if "uncond" in sampler.guidance.requires else 1
    at_most = min(count, _LARGEST)
    sizes = _sizes(branches * at_most, first=1 if at_most * elements > _LARGE else _FIRST)
    small = branches * count * steps < _WORTH * _STEPS * sum(sizes)
    if at_most == 1 or (small and at_most * elements <= _LARGE):
        return at_most
    key = (getattr(model, "weights_sha256", id(model)), str(model.dtype), str(model.device), _threads(), shape)
    if key not in _known or _known[key][0] < sizes[-1]:
        _known[key] = sizes[-1], _probe(sampler, task, seeds, steps, sizes)
    fit = {rows // branches: seconds for rows, seconds in _known[key][1].items() if rows >= branches}
    found = choose(fit, at_most)
    _log.debug("batch size %d, of seconds an image and step %s", found, fit)
    return found


def choose(seconds: Mapping[int, float], at_most: int) -> int:
    """The largest size up to ``at_most`` that takes at most 1.25 times as long, an image, as the best one; 1 if none is known."""
    allowed = {size: taken for size, taken in seconds.items() if size <= at_most}
    if not allowed:
        return 1
    best = min(allowed.values())
    found = max(size for size, taken in allowed.items() if taken <= _SLOWER * best)
    larger = min((size for size in seconds if size > at_most), default=None)
    # of sizes that were not tried themselves, those between two good ones are good
    return at_most if larger and seconds[larger] <= _SLOWER * best else found


def _sizes(at_most: int, first: int) -> list[int]:
    """Rows to try: doubled from ``first`` on, and ``at_most`` itself."""
    doubled = [2**k for k in range(at_most.bit_length()) if first <= 2**k < at_most]
    return [*doubled, at_most]


def _probe(sampler: LoopSampler, task: Any, seeds: Sequence[int], steps: int, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds an image and step by size, until it gets clearly slower or memory ends."""
    from research.sampling.interfaces import Guidance

    bare = copy.copy(sampler)
    bare.guidance, bare.hooks = Guidance(), []  # plugs are not to notice; a branch more is a row more
    found: dict[int, float] = {}
    fits = sizes[-1]
    for size in sizes:
        if size > fits:
            break
        memory = _Memory(sampler.model)
        try:
            with memory:
                found[size] = _seconds(bare, task, seeds, steps, size) / size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            free_memory()
        fits = min(fits, memory.fits(size))
        if found[size] > _SLOWER * min(found.values()):
            break
    return found


def _seconds(sampler: LoopSampler, task: Any, seeds: Sequence[int], steps: int, size: int) -> float:
    """Of the second step of a batch of an image that is repeated; the first warms up. On a CPU they are those of its own
    work: what else a machine does would decide the size."""
    ticks: list[float] = []
    device = sampler.model.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def progress(done: int, total: int, info: Mapping[str, Any]) -> None:
        _wait(device)
        ticks.append(clock())
        if len(ticks) == _STEPS:
            raise _Enough

    start = clock()
    with contextlib.suppress(_Enough):
        next(sampler.batches(task, seeds=seeds, rows=[0] * size, steps=steps, progress=progress))
    if len(ticks) < 2:
        return clock() - start
    return min(b - a for a, b in itertools.pairwise(ticks))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class _Memory:
    """How much memory a block takes at its highest."""

    def __init__(self, model: Any):
        self._device = model.device
        self._read, self._reset = _meters(self._device)
        self._before = self.taken = 0

    def __enter__(self) -> _Memory:
        self._reset()
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = max(0, self._read() - self._before)

    def fits(self, size: int) -> int:
        """How many images fit, if so many took what was seen."""
        free = _free(self._device)
        return _LARGEST * 4 if not self.taken or free is None else int(_OF_MEMORY * free * size / self.taken)


def _meters(device: Any) -> tuple[Callable[[], int], Callable[[], object]]:
    """What reads the highest use of memory since the last reset, and what resets it."""
    if device.type == "cuda":
        import torch

        return (
            lambda: int(torch.cuda.max_memory_allocated(device)),
            lambda: torch.cuda.reset_peak_memory_stats(device),
        )
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def highest() -> int:
        with contextlib.suppress(OSError, StopIteration, ValueError):
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        return 0

    def forget() -> None:
        with contextlib.suppress(OSError):
            reset.write_text("5")

    return highest, forget


def _free(device: Any) -> int | None:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return None
