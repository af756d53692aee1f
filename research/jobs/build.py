"""Objects of the classes that a config names."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from research.errors import ConfigError, UserError


def build(node: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """The object of a config node with a ``_target_``, with plain lists and dicts as its arguments.

    Args:
        node: the config node; nodes inside it are built first.
        key: where it stands in the config, for the message.
        arguments: given to the outermost class besides the node's own.

    Raises:
        UserError: the class's own complaint as it is, or one line for any other error of the constructor.
    """
    try:
        if (own := _own_class(node)) is not None:
            settings = {name: value for name, value in node.items() if name != "_target_"}
            return _built(own, {**copy.deepcopy(settings), **arguments})
        if not arguments:
            return instantiate(dict(node), _convert_="all")
        # given past Hydra: a prompt may well hold "${", which in a config is an interpolation
        return instantiate({**node, "_partial_": True}, _convert_="all")(**arguments)
    except UserError:
        raise
    except (InstantiationException, TypeError, ValueError, _Failed) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ConfigError(f"{key}: {node.get('_target_')} cannot be built: {reason}") from error


class _Failed(Exception):
    """A constructor's error, which is its cause."""


def _built(cls: type, settings: dict[str, Any]) -> Any:
    try:
        return cls(**settings)
    except UserError:
        raise
    except Exception as error:
        raise _Failed from error


def _own_class(node: Mapping[str, Any]) -> type | None:
    """The project's class that a node names, if there is nothing in the node that only Hydra can build.

    Hydra takes milliseconds a node, most of which go to copying it; a sweep of small jobs notices. Other classes are left
    to Hydra, which refuses some.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("research.") or _special(node, 0):
        return None
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and found.__module__.startswith("research.") else None


def _special(value: Any, depth: int) -> bool:
    """Whether a node has nodes inside, or settings of Hydra's own."""
    if isinstance(value, Mapping):
        own = any(str(key).startswith("_") and (depth or key != "_target_") for key in value)
        return own or any(_special(inner, depth + 1) for inner in value.values())
    return isinstance(value, list) and any(_special(inner, depth + 1) for inner in value)


def guidance_of(config: Mapping[str, Any]) -> Any:
    """The guidance of a job's config with its modifiers around it, the first of them innermost.

    Raises:
        UserError: see `build`.
    """
    node = dict(config["guidance"])
    modifiers = node.pop("modifiers", None) or {}
    guidance = build(node, "guidance")
    for name, modifier in modifiers.items():
        guidance = build(modifier, f"guidance.modifiers.{name}", guidance=guidance)
    return guidance
