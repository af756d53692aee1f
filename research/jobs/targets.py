"""Checks of the config nodes that name a class (``_target_``) and its arguments, and of the options of a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from research.errors import ConfigError, nearest
from research.jobs.roles import role_at
from research.jobs.signatures import Signature, method_arguments, methods_of, signature
from research.solvers import resolve
from research.solvers.names import OF_MODEL

_OF_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_OF_THE_LOOP = frozenset({"self", "model_output", "timestep", "sample", "generator", "return_dict"})


def nodes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_`` in a config, with its dotted key, outer ones first."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        for name, inner in value.items():
            yield from nodes(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from nodes(inner, f"{key}[{place}]")


def check(value: Any, key: str, *, filled_in: frozenset[str] = frozenset()) -> None:
    """Check that each class exists and takes the arguments given.

    Args:
        value: a config node.
        key: where it stands, for the message.
        filled_in: arguments of the outermost class that the runner gives and the config must not.

    Raises:
        ConfigError: it does not.
    """
    for where, node in nodes(value, key):
        found = _signature(where, node["_target_"])
        role = role_at(where)
        if role is not None and (lacks := role.lacks(methods_of(node["_target_"]))):
            raise ConfigError(f"{where}._target_: {node['_target_']} {lacks}")
        if found is not None:
            _check_arguments(where, node, found, filled_in if where == key else frozenset())


def takes(node: Mapping[str, Any], argument: str) -> bool:
    """Whether a node's class has an argument; a class whose source does not tell is taken to have it."""
    found = signature(str(node["_target_"]))
    return found is None or argument in found.arguments or found.open_ended


def needs(node: Mapping[str, Any], argument: str) -> bool:
    """Whether a node's class cannot do without an argument."""
    found = signature(str(node["_target_"]))
    return found is not None and argument in found.required


def without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """A node less the arguments that only repeat the class's default: the same object either way."""
    found = signature(str(node["_target_"])) if "_target_" in node else None
    if found is None:
        return node
    return {name: value for name, value in node.items() if not _repeats_default(found, name, value)}


def _repeats_default(found: Signature, name: str, value: Any) -> bool:
    if name not in found.arguments:
        return False
    default = found.arguments[name]
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def _signature(where: str, target: Any) -> Signature | None:
    if not isinstance(target, str):
        raise ConfigError(f"{where}._target_: found {target!r}; accepted is a class by its dotted name.")
    try:
        return signature(target)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def _check_arguments(where: str, node: dict[str, Any], found: Signature, filled_in: frozenset[str]) -> None:
    accepted = [name for name in found.arguments if name not in filled_in]
    cls = node["_target_"].rpartition(".")[2]
    for name in node:
        if name in _OF_HYDRA or (found.open_ended and name not in filled_in) or name in accepted:
            continue
        why = "is set from the job's prompts" if name in filled_in else f"unknown key, {cls} has no such argument"
        raise ConfigError(f"{where}.{name}: {why}.{nearest(name, accepted)} Accepted: {', '.join(accepted) or 'none'}.")
    if "_args_" in node or node.get("_partial_"):
        return
    for name in sorted(found.required - set(node) - filled_in):
        raise ConfigError(f"{where}.{name}: must be given, {cls} needs it; set it with {where}.{name}=VALUE.")


def check_scheduler(scheduler: Mapping[str, Any]) -> None:
    """Check a scheduler's class name and options against its class's source.

    Raises:
        ConfigError: no such class, or an option that neither its constructor nor its ``step`` takes.
    """
    class_name, options = scheduler.get("class_name"), scheduler.get("options")
    if not isinstance(class_name, str):
        raise ConfigError(f"scheduler.class_name: found {class_name!r}; accepted is the name of a class.")
    if not isinstance(options, dict):
        raise ConfigError(
            f"scheduler.options: found {options!r}; accepted is name=value, as in scheduler.options.eta=1."
        )
    if class_name == OF_MODEL:  # whose options are checked when the model is known
        return
    spec = resolve(class_name, options)
    target = spec.class_name if "." in spec.class_name else f"diffusers.{spec.class_name}"
    try:
        found = signature(target)
    except ConfigError as error:
        raise ConfigError(f"scheduler.class_name: {str(error).removeprefix('_target_: ')}") from error
    if found is None or found.open_ended:
        return
    accepted = set(found.arguments) | (method_arguments(target, "step") - _OF_THE_LOOP)
    for name in options:
        if name not in accepted:
            raise ConfigError(
                f"scheduler.options.{name}: unknown key, {class_name} has no such option.{nearest(name, accepted)} "
                f"Accepted: {', '.join(sorted(accepted))}."
            )
