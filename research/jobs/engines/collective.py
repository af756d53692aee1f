"""What ranks say to one another: a few numbers and lines, by gloo, on CPUs and GPUs alike.

The group is the project's own and not torch's default one: libraries that find a default group (torchmetrics does) would wait for
ranks that are not there.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from research.errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = datetime.timedelta(days=30)  # of ranks that wait for slower ones; a dead one is noticed at once
_group: Any = None


class RankFailed(RuntimeError):
    """Some rank could not do its part; the message says which and why."""


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Meet the other ranks; while it is open, this process can talk to them. They part together, unless an error ends it.

    A process that ended with the group's threads at work would now and then be aborted by them.
    """
    global _group
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    _group = dist.ProcessGroupGloo(dist.PrefixStore("research", store), rank, world, _PATIENCE)
    try:
        yield
        _group.barrier().wait()
    finally:
        _group = None


def broadcast(told: Any, root: int = 0) -> Any:
    """Hear what a rank says; on that rank, say it. What is said is plain: what JSON can hold."""
    import torch

    content = json.dumps(told).encode() if _group.rank() == root else b""
    length = torch.tensor([len(content)])
    _group.broadcast(length, root).wait()
    data = torch.empty(int(length), dtype=torch.uint8)
    if content:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    _group.broadcast(data, root).wait()
    return json.loads(data.numpy().tobytes())


def add(tensor: Tensor) -> None:
    """Replace a CPU tensor by its sum over the ranks."""
    _group.allreduce([tensor]).wait()


def on_all_ranks(step: Callable[[], T]) -> T:
    """Take a step that may fail on any rank: all go on, or none does.

    Raises:
        RankFailed: on all ranks, if any raised an error.
    """
    said: str | None = None
    try:
        found = step()
    except Exception as error:
        said = one_line(error)
    all_said = [broadcast(said, root) for root in range(_group.size())]
    if failed := [f"rank {k}: {line}" for k, line in enumerate(all_said) if line]:
        raise RankFailed("; ".join(failed))
    return found
