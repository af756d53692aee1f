"""A callable of the user's own as a network: how it is called, what of it has weights, and their hash."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import ConfigError, SamplingError, UserError, one_line

LABELS = ("labels", "class_labels", "label", "y")  # what networks call their labels, and their texts
TEXTS = ("embeds", "encoder_hidden_states", "context", "text")


class OwnNetwork(nn.Module):
    """A callable ``network(x, t, **told)`` as a module, called with what it takes by the names that it has.

    Args:
        call: the network.
        words: by what it is told: the names that it may have for it, see `LABELS`.

    Raises:
        ConfigError: it is no callable, or cannot be called so.
    """

    def __init__(self, call: Any, words: Mapping[str, Sequence[str]]):
        super().__init__()
        if not callable(call) or isinstance(call, type):
            found = f"the class {call.__name__}" if isinstance(call, type) else repr(call)
            raise ConfigError(
                f"network: found {found:.100}; accepted is a callable network(x, t, **told), such as a Module."
            )
        self.name = _name_of(call)
        self.parts = nn.ModuleList(_modules_of(call))
        self.__dict__["call"] = call  # past nn.Module, which would list a module twice
        self.names = {what: _argument(call, what, words[what], self.name) for what in words}
        _check_call(call, self.names, self.name)

    def forward(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        """The network's prediction, shape of ``x``.

        Args:
            x: [B, ...].
            t: [B].
            told: by what it is, each [B, ...]; handed on by the network's own names.

        Raises:
            SamplingError: it fails, or returns something else.
        """
        given = {self.names[what]: value for what, value in told.items()}
        try:
            found = self.__dict__["call"](x, t, **given)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a network of somebody else's may raise anything
            tensors = {name: value for name, value in {"x": x, "t": t, **given}.items() if isinstance(value, Tensor)}
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
            raise SamplingError(
                f"network: {self.name} failed when it was called with {shapes}: {one_line(error)}"
            ) from error
        if isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
            found = found[0]
        found = getattr(found, "sample", found) if not isinstance(found, Tensor) else found  # as diffusers' networks
        if not isinstance(found, Tensor) or found.shape != x.shape or not found.is_floating_point():
            kind = f"{found.dtype} of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise SamplingError(
                f"network: {self.name} returned {kind} for x {list(x.shape)}; accepted is a tensor of floats, {list(x.shape)}."
            )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnNetwork:
        call = self.__dict__["call"]
        if not isinstance(call, nn.Module):
            raise ConfigError(
                f"guidance: {self.name} is a function, of which no worse copy can be made; accepted is a network that is a "
                "torch.nn.Module."
            )
        return OwnNetwork(copy.deepcopy(call, memo), {what: (name,) for what, name in self.names.items()})


def _name_of(call: Any) -> str:
    return getattr(call, "__qualname__", None) or type(call).__name__


def _argument(call: Any, what: str, words: Sequence[str], name: str) -> str:
    """The name of an argument of a network for what it is told."""
    parameters = _parameters(call)
    if parameters is None:
        return words[0]
    for word in words:
        if word in parameters:
            return word
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return words[0]
    raise ConfigError(
        f"network: {name}({', '.join(parameters)}) takes no {what}; accepted is one with an argument called {' or '.join(words)}."
    )


def _check_call(call: Any, names: Mapping[str, str], name: str) -> None:
    parameters = _parameters(call)
    if parameters is None:
        return
    try:
        inspect.Signature(list(parameters.values())).bind(None, None, **dict.fromkeys(names.values()))
    except TypeError as error:
        asked = ", ".join(["x", "t", *(f"{word}=" for word in names.values())])
        raise ConfigError(
            f"network: {name}({', '.join(parameters)}) cannot be called as network({asked}): {error}."
        ) from error


def _parameters(call: Any) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(call.forward if isinstance(call, nn.Module) else call).parameters
    except (TypeError, ValueError):  # of a compiled extension nobody knows
        return None


def _modules_of(call: Any, depth: int = 0) -> Iterator[nn.Module]:
    """The modules with weights inside of a callable: itself, what it is bound to, what it closes over, or its attributes."""
    if isinstance(call, nn.Module):
        yield call
        return
    if depth > 2:
        return
    seen: set[int] = set()
    for each in _held(call):
        if isinstance(each, nn.Module) or callable(each):
            for module in _modules_of(each, depth + 1):
                if id(module) not in seen:
                    seen.add(id(module))
                    yield module


def _held(call: Any) -> list[Any]:
    """What a callable holds: what it was given by `functools.partial`, is bound to, closes over, or has as attributes."""
    held: list[Any] = []
    if isinstance(call, functools.partial):
        held += [call.func, *call.args, *call.keywords.values()]
    if bound := getattr(call, "__self__", None):
        held.append(bound)
    held += [cell.cell_contents for cell in getattr(call, "__closure__", None) or ()]
    return [*held, *getattr(call, "__dict__", {}).values()]


def weights_hash(calls: Sequence[Any]) -> str:
    """SHA-256 over the parameters and buffers of all modules inside of callables; of one without, over its source and the
    numbers, words and tensors that it holds."""
    digest = hashlib.sha256()
    for call in calls:
        modules = list(_modules_of(call))
        for module in modules:
            for name, value in module.state_dict().items():
                if isinstance(value, Tensor):
                    _add(digest, name, value)
        if not modules:
            digest.update(_source(call).encode())
            for place, value in enumerate(_held(call)):
                if isinstance(value, Tensor):
                    _add(digest, str(place), value)
                elif isinstance(value, bool | int | float | str):
                    digest.update(f"{place} {value!r}\0".encode())
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _source(call: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(call if inspect.isroutine(call) else type(call))
    except (OSError, TypeError):
        return f"{getattr(call, '__module__', '')}.{_name_of(call)}"
