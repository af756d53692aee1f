"""Checks of the sections of a job that name classes. They import no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from research.errors import ConfigError, nearest
from research.jobs import targets
from research.jobs.build import COMPOSED, Origin, build
from research.jobs.plan_cache import Memo
from research.metrics.base import as_metric
from research.metrics.score import check_metric


def check_plugs(config: dict[str, Any], memo: Memo) -> None:
    """Check that the plugs of a job are classes that take what they are given; empty sections become empty mappings.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    memo("scheduler", config["scheduler"], lambda: targets.check_scheduler(config["scheduler"]))
    for key in ("guidance", "task"):
        check_mapping(key, config[key])
        if "_target_" not in config[key]:
            raise ConfigError(f"{key}._target_: is missing; accepted is a class by its dotted name, or {key}=CHOICE.")
    guidance = dict(config["guidance"])
    if not (modifiers := guidance.pop("modifiers", None) or {}):
        config["guidance"] = guidance
    else:
        config["guidance"] = {**guidance, "modifiers": modifiers}
    memo("guidance", config["guidance"], lambda: _check_guidance(guidance, modifiers))
    filled_in = frozenset({"prompt"})
    memo("task", config["task"], lambda: targets.check(config["task"], "task", filled_in=filled_in))
    for key in ("hooks", "metrics"):
        config[key] = config.get(key) or {}
        memo(key, config[key], partial(_check_named, key, config[key]))
    config["tracker"] = config.get("tracker") or {}
    check_mapping("tracker", config["tracker"])
    if config["tracker"] and "_target_" not in config["tracker"]:
        raise ConfigError(f"tracker.{next(iter(config['tracker']))}: unknown key; with tracker=none it has none.")
    memo("tracker class", config["tracker"], lambda: targets.check(config["tracker"], "tracker"))


def _check_guidance(guidance: Mapping[str, Any], modifiers: Any) -> None:
    targets.check(guidance, "guidance")
    if modifiers:
        _named("guidance.modifiers", modifiers)
        for name, node in modifiers.items():
            targets.check(node, f"guidance.modifiers.{name}", filled_in=frozenset({"guidance"}))
    whole = {**guidance, "modifiers": modifiers}
    for where, node in targets.nodes(whole, "guidance"):
        _check_scale(f"{where}.scale", node.get("scale", 1.0))


def _check_named(key: str, entries: Any) -> None:
    _named(key, entries)
    targets.check(entries, key)


def _named(key: str, entries: Any) -> None:
    """Check that a section holds classes by names of their own."""
    check_mapping(key, entries)
    if "_target_" in entries:
        raise ConfigError(
            f"{key}._target_: found without a name; accepted is one level more in the YAML file, NAME: {{_target_: ...}}."
        )
    for name, node in entries.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(
                f"{key}.{name}: unknown key.{nearest(name, entries)} Accepted are entries with a _target_."
            )


def _check_scale(key: str, value: Any) -> None:
    if isinstance(value, dict):  # a schedule of one's own
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key}: found {value!r}; accepted is a finite number.")


def check_metrics(
    metrics: Mapping[str, Any], n_images: int, config: Mapping[str, Any] | None = None, origin: Origin = COMPOSED
) -> None:
    """Check that each metric can be built, and can work with so many images, and with such a job if one is given."""
    for name, node in metrics.items():
        metric = build(node, f"metrics.{name}", origin)  # constructors are cheap by contract
        check_metric(as_metric(metric, name), n_images, config)


def check_mapping(key: str, value: Any) -> None:
    """Check that a section has keys."""
    if not isinstance(value, dict):
        raise ConfigError(
            f"{key}: found {value!r}; accepted is a choice of the group {key} or keys inside it, {key}.NAME=VALUE."
        )
