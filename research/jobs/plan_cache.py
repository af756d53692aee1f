"""The cache of one plan: what several of its jobs have in common is checked and hashed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from research.errors import UserError

T = TypeVar("T")


class PlanCache:
    """Answers by what was asked, errors too. Each plan has its own: a later one looks anew, as files may have changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, UserError | None]] = {}

    def get(self, what: str, about: Any, find: Callable[[], T]) -> T:
        """What ``find`` gives or raises for a question and the plain config values that it is about."""
        key = f"{what} {json.dumps(about, default=repr)}"
        if key not in self._known:
            try:
                self._known[key] = find(), None
            except UserError as error:
                self._known[key] = None, error
        answer: T
        answer, error_before = self._known[key]
        if error_before is not None:
            raise error_before
        return answer


class NoCache(PlanCache):
    """For a job without a plan: asks each time."""

    def get(self, what: str, about: Any, find: Callable[[], T]) -> T:
        return find()
