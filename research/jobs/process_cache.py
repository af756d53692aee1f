"""What the jobs of one process share: the model, loaded once, and the trackers.

A module of its own, so that launchers which copy the task function into their workers still find one cache a worker.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from research.caches import Cache
from research.jobs import own_model
from research.jobs.build import build
from research.jobs.schema import MODEL_IDENTITY
from research.jobs.tracker_thread import TrackerThread
from research.lazy import gc_paused

_log = logging.getLogger(__name__)
# one at a time: a sweep goes through them one after the other, and two may not fit a GPU
_models = Cache("models", 0)
_adopted: dict[str, Any] = {}  # models that a caller has loaded already
_trackers: dict[str, Any] = {}
_default_threads: int | None = None


def libraries() -> Any:
    """Import torch, diffusers and transformers, which takes seconds, and return `LoopSampler`."""
    if new := "torch" not in sys.modules:
        _log.info("loading torch and diffusers")
    with gc_paused(keep=new):
        from research.sampling import LoopSampler

        importlib.import_module("research.models.load")
        for name in ("diffusers", "transformers"):
            # their bars for reading a checkpoint would run through ours, and fill log files
            logging_of = importlib.import_module(f"{name}.utils.logging")
            logging_of.disable_progress_bar()
    return LoopSampler


def model(settings: Mapping[str, Any]) -> tuple[Any, bool]:
    """The model of a config's ``model`` section, and whether it had to be loaded."""
    key = _key(settings)
    if loaded := key not in _models:
        _models.clear()  # before the next is there, not after
    found = _models.get(key, lambda: _load(settings), _bytes)
    if not loaded and not own_model.is_own(settings):  # a sweep over these reads the weights once
        found.choose(**{name: settings.get(name) for name in MODEL_IDENTITY})
    return found, loaded


def adopt(settings: Mapping[str, Any], model: Any) -> None:
    """Have a model that is loaded already stand for a config's ``model`` section, until `give_back`."""
    _adopted[_key(settings)] = model


def give_back() -> None:
    """Forget the models that were adopted; they go on with their owner."""
    if _adopted:
        _adopted.clear()
        _models.clear()


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in settings.items() if name not in MODEL_IDENTITY}, sort_keys=True)


def _load(settings: Mapping[str, Any]) -> Any:
    from research.models import load_model

    if (found := _adopted.get(_key(settings))) is not None:
        return found
    if own_model.is_own(settings):
        _log.info("building model %s", settings["_target_"])
        return own_model.loaded(settings)
    _log.info("loading model %s", settings["path"])
    arguments = dict(settings)
    with gc_paused():
        return load_model(arguments.pop("path"), **arguments)


def _bytes(model: Any) -> int:
    """Of its weights."""
    return sum(p.nbytes for module in getattr(model, "modules", list)() for p in module.parameters())


def tracker(node: Mapping[str, Any] | None) -> Any:
    """The tracker of a config's ``tracker`` section, or None without one; the same object for all jobs that name it alike."""
    if not node:
        return None
    key = json.dumps(node, sort_keys=True)
    if key not in _trackers:
        _trackers[key] = TrackerThread(build(node, "tracker"))
    return _trackers[key]


def close_trackers() -> None:
    """Let every tracker finish what it still has to send."""
    while _trackers:
        _trackers.popitem()[1].close()


def clear() -> None:
    """Forget all models."""
    _models.clear()


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads for a job; a later job that leaves them open gets torch's own choice back."""
    global _default_threads
    import torch

    _default_threads = _default_threads or torch.get_num_threads()
    if torch.get_num_threads() != (threads or _default_threads):
        torch.set_num_threads(threads or _default_threads)
