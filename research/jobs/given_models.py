"""Models that were made in Python and handed over as objects: known by what they are made of, and only in this process."""

from __future__ import annotations

from typing import Any

from research.errors import ConfigError

TARGET = "research.jobs.given_models.given"
_models: dict[str, Any] = {}


def keep(digest: str, model: Any) -> None:
    """Have `given` find a model by the hash of what it is made of."""
    _models[digest] = model


def given(digest: str) -> Any:
    """The model of a hash.

    Raises:
        ConfigError: it is not of this process.
    """
    if digest not in _models:
        raise ConfigError(
            "model.digest: names a model that was handed to research.sweep as an object, which no file holds; run research.sweep "
            "with it again, or have a function make it: model=my_models.build there, model._target_=my_models.build here."
        )
    return _models[digest]


def forget() -> None:
    """Do without all of them."""
    _models.clear()
