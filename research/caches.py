"""What is kept from job to job in one process: values by key, up to a number of bytes, with a count of how often that helped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")
MIB = 1 << 20
_caches: dict[str, Cache] = {}


class Cache:
    """Values by key. Those that were not asked for longest leave first; the newest stays, however large it is.

    Args:
        name: for the records of jobs; a cache of a name is one for the whole process.
        max_bytes: of all values together, by what `get` is told of each.
        max_entries: how many values, where their number is what costs.
    """

    def __init__(self, name: str, max_bytes: int, max_entries: int | None = None):
        self.name, self.max_bytes, self.max_entries = name, max_bytes, max_entries
        self.hits = self.misses = self.bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()
        _caches[name] = self

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int] | int = 0) -> Value:
        """The value of a key, made if it is not there; ``size`` is its bytes, or says them of the value."""
        with self._lock:
            if key in self._values:  # the value itself may be None
                self.hits += 1
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        return self.put(key, value, size if isinstance(size, int) else size(value))

    def peek(self, key: Hashable) -> Any:
        """The value of a key or None; for values that are made several at once, and `put` then."""
        with self._lock:
            if key not in self._values:
                return None
            self.hits += 1
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Value, nbytes: int) -> Value:
        """Keep a value of so many bytes, and return it."""
        with self._lock:
            self.misses += 1
            self._forget(key)
            self._values[key] = value, nbytes
            self.bytes += nbytes
            while len(self._values) > 1 and self._too_much():
                self._forget(next(iter(self._values)))
        return value

    def clear(self) -> None:
        """Forget all values; the counts stay."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def _too_much(self) -> bool:
        return self.bytes > self.max_bytes or (self.max_entries is not None and len(self._values) > self.max_entries)

    def _forget(self, key: Hashable) -> None:
        if key in self._values:
            self.bytes -= self._values.pop(key)[1]


Counts = Mapping[str, tuple[int, int]]


def counts() -> Counts:
    """Hits and misses of all caches until now."""
    return {name: (cache.hits, cache.misses) for name, cache in _caches.items()}


def since(before: Counts) -> dict[str, dict[str, int]]:
    """By cache, for a job's record: hits and misses since ``before``, and the bytes held now. Those not asked are left out."""
    found = {}
    for name, cache in sorted(_caches.items()):
        hits, misses = before.get(name, (0, 0))
        if (cache.hits, cache.misses) != (hits, misses):
            found[name] = {"hits": cache.hits - hits, "misses": cache.misses - misses, "bytes": cache.bytes}
    return found


def clear() -> None:
    """Forget the values of all caches."""
    for cache in _caches.values():
        cache.clear()
