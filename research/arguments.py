"""What a plug was made with: the arguments of its constructor, kept with it, and how it shows itself by them.

A plug that derives from `Recorded` keeps the arguments as they were given; of another one they are read from attributes of the
same names. ``CFG(3)`` in a notebook is shown as that, and becomes ``guidance=cfg guidance.scale=3`` in a sweep.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from html import escape
from typing import Any, Self

_LONGEST = 60  # characters of an argument in a repr
_PLAIN = (bool, int, float, str, type(None))


class Recorded:
    """A plug that keeps what its constructor was given. It has no ``__init__`` that one would have to call."""

    __slots__ = ("_constructed_with",)  # not among what `vars` gives: it is nothing that a run leaves behind

    _constructed_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls.__init__ is object.__init__ and (args or kwargs):  # which would take them in silence
            raise TypeError(f"{cls.__name__}() takes no arguments")
        found = super().__new__(cls)
        object.__setattr__(found, "_constructed_with", (args, kwargs))
        return found

    def __setstate__(self, state: Any) -> None:
        # a copy's; written past a frozen dataclass, which takes no attribute
        own, slots = state if isinstance(state, tuple) else (state, None)
        if own:
            self.__dict__.update(own)
        for name, value in (slots or {}).items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return described(self)

    def _repr_html_(self) -> str:
        return described_html(self)


def arguments_of(plug: Any) -> dict[str, Any] | None:
    """The constructor's arguments that make such a plug, by name, less those that were left to their defaults; None where that
    cannot be told.

    What was set since under an argument's name counts (``cfg.scale = 5``), and other changes do not.
    """
    parameters = parameters_of(type(plug))
    if parameters is None:
        return None
    recorded = getattr(plug, "_constructed_with", None) if isinstance(plug, Recorded) else None
    found = _from_attributes(plug, parameters) if recorded is None else _bound(type(plug), recorded)
    return None if found is None else _as_now(plug, found, parameters)


def parameters_of(cls: type) -> dict[str, inspect.Parameter] | None:
    """The parameters of a class's constructor by name; None of one that cannot be looked into."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        found = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    except (TypeError, ValueError):
        return None
    found.pop(next(iter(found), ""), None)  # self
    return found


def described(plug: Any) -> str:
    """``Name(3.0, steps=[0.2, 0.8])``: the call that makes it, with long arguments cut."""
    arguments, name = arguments_of(plug), type(plug).__name__
    if arguments is None:
        return f"{name}(...)"
    parameters = parameters_of(type(plug)) or {}
    first = next(iter(parameters), None)
    named = parameters[first].kind is inspect.Parameter.KEYWORD_ONLY if first else True
    words = [
        short(value) if key == first and not named else f"{key}={short(value)}" for key, value in arguments.items()
    ]
    return f"{name}({', '.join(words)})"


def described_html(plug: Any) -> str:
    """The same as a small table, with what its class says of itself, and the arguments that were left to their defaults."""
    arguments, parameters = arguments_of(plug) or {}, parameters_of(type(plug)) or {}
    usual = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in arguments and parameter.default is not inspect.Parameter.empty
    }
    given = "".join(_row(key, _html(value)) for key, value in arguments.items())
    rest = "".join(_row(key, escape(short(value)), "opacity:.6") for key, value in usual.items())
    said = (inspect.getdoc(type(plug)) or "").split("\n\n")[0].replace("``", "").replace("`", "")
    return (
        f"<div><b>{escape(type(plug).__name__)}</b> <span style='opacity:.7'>{escape(' '.join(said.split()))}</span>"
        f"<table>{given}{rest}</table></div>"
    )


def short(value: Any) -> str:
    """A value in a few characters: pictures and tensors by their size, long text cut."""
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype") and tuple(shape):
        return f"<{type(value).__name__.lower()} {list(shape)}>"
    if hasattr(value, "getbands") and hasattr(value, "size"):
        return f"<picture {value.size[0]} x {value.size[1]}>"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        text = ", ".join(map(short, value[:8])) + (", ..." if len(value) > 8 else "")
        text = f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{short(key)}: {short(inner)}" for key, inner in value.items()) + "}"
    elif inspect.isfunction(value) or isinstance(value, type):
        text = value.__qualname__
    else:
        text = " ".join(repr(value).split())
    if isinstance(value, Recorded) or len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 4]}...{text[-1] if text[-1] in '])}' + chr(39) else ''}"


# -- which arguments


def _bound(cls: type, recorded: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any] | None:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind(None, *recorded[0], **recorded[1])
    except TypeError:  # a copy that was made past the constructor
        return None
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return None  # which have no names
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def _from_attributes(plug: Any, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any] | None:
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            return None
        value = getattr(plug, name, getattr(plug, f"_{name}", parameter.default))
        if value is inspect.Parameter.empty:
            return None
        if value is not parameter.default:
            found[name] = value
    return found


def _as_now(plug: Any, found: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments with those that were set anew after the plug was made: what it would not have if it were made of them."""
    changed = {}
    for name, parameter in parameters.items():
        given = found.get(name, parameter.default)
        now = vars(plug).get(name, given) if hasattr(plug, "__dict__") else given
        if type(now) in _PLAIN and type(given) in _PLAIN and now != given:
            changed[name] = now
    if not changed:
        return found
    try:
        made = type(plug)(**found)
    except (
        Exception
    ):  # a constructor of somebody else's may raise anything, and may have a reason not to be called again
        return found
    return found | {name: now for name, now in changed.items() if getattr(made, name, now) != now}


# -- as a table


def _row(key: str, value: str, style: str = "") -> str:
    return f"<tr style='{style}'><td style='text-align:left'>{escape(key)}</td><td style='text-align:left'>{value}</td></tr>"


def _html(value: Any) -> str:
    from research.showing import picture

    return picture(value, 96) if hasattr(value, "getbands") else escape(short(value))
