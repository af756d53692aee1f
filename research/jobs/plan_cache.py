"""What is equal between the jobs of one plan is looked at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from research.errors import UserError


class Memo:
    """Answers by what was asked, errors too. One a plan: a later plan looks anew, as files may have changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, UserError | None]] = {}

    def __call__(self, what: str, about: Any, find: Callable[[], Any]) -> Any:
        """What ``find`` gives or raises for a question and the plain config values that it is about."""
        key = f"{what} {json.dumps(about, default=repr)}"
        if key not in self._known:
            try:
                self._known[key] = find(), None
            except UserError as error:
                self._known[key] = None, error
        answer, error_before = self._known[key]
        if error_before is not None:
            raise error_before
        return answer


class Forgetful(Memo):
    """Asks each time."""

    def __call__(self, what: str, about: Any, find: Callable[[], Any]) -> Any:
        return find()
