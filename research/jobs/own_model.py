"""A model of the user's own, ``model._target_``: built by their function, known by its source, its arguments and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from research.errors import ConfigError
from research.jobs import targets
from research.jobs.build import COMPOSED, Origin, build, check_model_name
from research.jobs.plug_sources import LENGTH, source_of
from research.jobs.schema import SECTIONS

# the last one built, on the CPU until somebody moves it, and the weights of all
_built: dict[str, Any] = {}
_weights: dict[str, str] = {}


def is_own(model: Mapping[str, Any]) -> bool:
    """Whether a config's ``model`` section names a function or class of the user's."""
    return "_target_" in model


def node_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the user's function is called with: the section less the keys that every model has."""
    return {key: value for key, value in model.items() if key not in SECTIONS["model"]}


def check(model: Mapping[str, Any]) -> None:
    """Check that the function exists and takes its arguments, without importing it.

    Raises:
        ConfigError: it does not; or a key is set that says something of checkpoints alone.
    """
    target = model["_target_"]
    if taken := [key for key in SECTIONS["model"] if targets.needs(node_of(model), key)]:
        raise ConfigError(
            f"model._target_: {target} has an argument {taken[0]!r}, a key that every model has; accepted is another name."
        )
    targets.check(node_of(model), "model")
    for key, usual in _OF_CHECKPOINTS.items():
        if model.get(key, usual) != usual:
            raise ConfigError(
                f"model.{key}: found {model[key]!r} with model._target_; accepted there is {json.dumps(usual)}."
            )


_OF_CHECKPOINTS = {
    "config": None,
    "allow_pickle": False,
    "attention_slicing": None,
    "compile": False,
    "channels_last": False,
    "loras": None,
    "quantize": "none",
    "offload": "none",
    "drop_text_encoders": False,
    "vae_tiling": False,
    "vae_slicing": False,
    "distilled_guidance": None,
    "max_sequence_length": None,
}


def built(model: Mapping[str, Any], origin: Origin = COMPOSED) -> Any:
    """The model, built once in a row; what its function draws is the same each time.

    Raises:
        UserError: the function's own complaint, or one line of what it raises; or it returns no model; or a record names it that
            may not.
    """
    check_model_name(model, origin)
    key = _key(model)
    if key not in _built:
        import torch

        _built.clear()  # two may not fit the memory
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = build(node_of(model), "model")
        if not hasattr(found, "solvers") or not hasattr(found, "denoiser"):
            raise ConfigError(
                f"model._target_: {model['_target_']} returned a {type(found).__name__}; accepted is what research.models.wrap "
                "returns."
            )
        found.path = str(model["path"])
        _built[key] = found
        _weights[key] = str(found.weights_sha256)
    return _built[key]


def loaded(model: Mapping[str, Any]) -> Any:
    """The model where the section says it is to run: in its own dtype, unless another is named."""
    from research.models.load import resolve_dtype_and_device

    found = built(model)
    dtype, device = resolve_dtype_and_device(model["dtype"], model["device"])
    if hasattr(found, "to"):
        if model["dtype"] == "auto":
            found.to(device)
        else:
            found.to(device, dtype)
    return found


def digest(model: Mapping[str, Any]) -> str:
    """The hash of the function's source, with what it imports from the user's folders, and of the weights: `LENGTH` hex digits.

    Raises:
        UserError: see `built`.
    """
    key = _key(model)
    if key not in _weights:
        built(model)
    return hashlib.sha256(f"{source_of(model['_target_'])} {_weights[key]}".encode()).hexdigest()[:LENGTH]


def forget() -> None:
    """Build anew: files that a function reads may be others."""
    _built.clear()
    _weights.clear()


def _key(model: Mapping[str, Any]) -> str:
    return json.dumps([node_of(model), source_of(str(model["_target_"]))], sort_keys=True, default=str)
