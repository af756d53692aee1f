"""Plugs watched while they run: what of their arguments they change in place, what they draw from, and what they hand back."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.sampling.interfaces import Guided, Hook, StepOutput, StepState
from research.sampling.prediction import KINDS, Prediction
from research.testing.plug_rules import ASSIGNING, Finding, place_of, returned

Found = Callable[[Finding], None]
Check = Callable[[Any, tuple[Any, ...], Any], None]


class Faulty(Exception):
    """What a plug handed back cannot be gone on with; the finding is kept already."""


@contextmanager
def watched(plug: Any, checks: Mapping[str, Check | None], found: Found) -> Iterator[None]:
    """For as long as it is open, the named methods of a plug are looked at while they run.

    Args:
        plug: of which the methods are replaced; they are put back at the end.
        checks: by the method's name, what looks at its arguments and its result.
        found: takes the findings.
    """
    before: dict[str, Any] = {}
    for name, check in checks.items():
        method = getattr(plug, name, None)
        if not callable(method):
            continue
        before[name] = vars(plug).get(name, _ABSENT)
        setattr(plug, name, _look_at(plug, name, method, check, found))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(plug, name)
            else:
                setattr(plug, name, value)


_ABSENT = object()


def _look_at(plug: Any, name: str, method: Callable[..., Any], check: Check | None, found: Found) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        held = [(what, tensor, tensor._version) for what, tensor in _tensors(args)]
        drawn = global_state()
        result = method(*args, **kwargs)
        changed = dict.fromkeys(what for what, tensor, version in held if tensor._version != version)
        if changed:
            found(
                Finding(
                    "error",
                    "in place",
                    place_of(plug, name),
                    f"changes {' and '.join(changed)} in place, which others read after it",
                    "Compute a new tensor: x = x * 2 and not x *= 2 or x.mul_(2).",
                )
            )
        if moved := [generator for generator, state in global_state().items() if state != drawn[generator]]:
            stream = "hook" if isinstance(plug, Hook) else "guidance"
            found(
                Finding(
                    "error",
                    "noise",
                    place_of(plug, name),
                    f"draws from {' and '.join(moved)}, so that an image is not the same in another batch or run",
                    f"Draw it from the run: state.run.noise.draw('{stream}/NAME', state.x.shape[1:], state.x.dtype).",
                )
            )
        if check is not None:
            check(plug, args, result)
        return result

    call.__self__ = plug  # type: ignore[attr-defined]  # who it belongs to, for messages of the loop
    return call


def _tensors(args: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a plug is handed, by what they are called."""
    for arg in args:
        if isinstance(arg, StepState):
            yield "state.x", arg.x
            if arg.x_before is not arg.x:
                yield "state.x_before", arg.x_before
            for name, condition in arg.conditions.items():
                if (embeds := getattr(condition, "embeds", None)) is not None:
                    yield f"state.conditions[{name!r}]", embeds
            if hasattr(arg, "guided") and isinstance(getattr(arg.guided, "prediction", None), Prediction):
                yield "state.guided", arg.guided.prediction.value
            for name, prediction in arg.predictions.items():
                yield f"the prediction {name!r}", prediction.value
        elif isinstance(arg, Mapping):
            for name, prediction in arg.items():
                if isinstance(prediction, Prediction):
                    yield f"the prediction {name!r}", prediction.value
        elif isinstance(arg, Tensor):
            yield "the inputs", arg
        elif hasattr(arg, "x") and isinstance(arg.x, Tensor):
            yield "run.x", arg.x


def global_state() -> dict[str, Any]:
    """Where the generators stand that belong to nobody: equal as long as nothing was drawn from them."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's global generator": (numpy_state[1].tobytes(), numpy_state[2]),
        "Python's random": hash(random.getstate()),
    }


@contextmanager
def global_noise_kept() -> Iterator[None]:
    """Leave the global generators as they were found."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def fresh(plug: Any) -> Any:
    """A copy of a plug that nothing was run with; the plug itself where it cannot be copied."""
    try:
        return copy.deepcopy(plug)
    except Exception:  # it may hold anything
        return plug


class WatchedSolver:
    """A `Solver` whose step is looked at while it runs; all else is the solver's own."""

    def __init__(self, solver: Any, found: Found):
        self.watched, self.found = solver, found

    def __getattr__(self, name: str) -> Any:
        if name in ("watched", "found"):  # while it is copied
            raise AttributeError(name)
        return getattr(self.watched, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> WatchedSolver:
        return WatchedSolver(copy.deepcopy(self.watched, memo), self.found)

    def step(self, guided: Any, x: Tensor, stage: Any, noise: Any) -> Any:
        place = place_of(self.watched, "step")
        prediction = guided.prediction.value
        before, drawn = (x._version, prediction._version), global_state()
        result = self.watched.step(guided, x, stage, noise)
        if (x._version, prediction._version) != before:
            what = "x" if x._version != before[0] else "guided.prediction"
            cure = "Compute a new tensor: x = x * 2 and not x *= 2 or x.mul_(2)."
            self.found(
                Finding("error", "in place", place, f"changes {what} in place, which others read after it", cure)
            )
            raise Faulty
        if global_state() != drawn:
            cure = "Draw it from the run: noise.draw('step', x.shape[1:], x.dtype)."
            self.found(Finding("error", "noise", place, "draws from a global generator", cure))
            raise Faulty
        if not isinstance(result, StepOutput):
            cure = "Return StepOutput(x) with the new latents."
            self.found(Finding("error", "returned type", place, f"returns {_a(type(result).__name__)}", cure))
            raise Faulty
        if not isinstance(result.x, Tensor) or result.x.shape != x.shape or result.x.dtype != x.dtype:
            cure = f"Latents keep shape and dtype: {_told(x)}."
            self.found(Finding("error", "latents", place, f"gives {_told(result.x)}", cure))
            raise Faulty
        return result


# -- what is handed back


def guidance_checks(found: Found, *, half: bool) -> dict[str, Check | None]:
    """What looks at the methods of a guidance."""

    def branches(plug: Any, args: tuple[Any, ...], result: Any) -> None:
        names = [getattr(branch, "name", None) for branch in result] if isinstance(result, list | tuple) else None
        if not names or None in names or len(set(names)) < len(names):
            said = "nothing" if names == [] else repr(result)[:80] if not names or None in names else f"{names}"
            cure = "Return a list of Branch(name, state.conditions[name]), one or more, each of a name of its own."
            found(Finding("error", "branches", place_of(plug, "branches"), f"asks for {said}", cure))
            raise Faulty

    def combine(plug: Any, args: tuple[Any, ...], result: Any) -> None:
        place = place_of(plug, "combine")
        if not isinstance(result, Guided) or not isinstance(result.prediction, Prediction):
            what = type(getattr(result, "prediction", None) if isinstance(result, Guided) else result).__name__
            cure = "Return Guided(Prediction(value, kind)); predictions['cond'].kind is the model's kind."
            found(Finding("error", "returned type", place, f"returns {_a(what)}", cure))
            raise Faulty
        state = args[0]
        given = next(iter(state.predictions.values()))
        for prediction in (result.prediction, result.renoise):
            if prediction is not None:
                _check_prediction(place, prediction, state.x_before, given, found, half=half, wider=half)

    return {"start": None, "branches": branches, "combine": combine}


def _check_prediction(
    place: str, prediction: Any, x: Tensor, given: Prediction, found: Found, *, half: bool, wider: bool
) -> None:
    value = prediction.value
    if not isinstance(value, Tensor) or value.shape != x.shape:
        what = f"{list(value.shape)}" if isinstance(value, Tensor) else _a(type(value).__name__)
        cure = f"A prediction has the shape of the latents, here {list(x.shape)}."
        found(Finding("error", "shape", place, f"returns {what} for latents {list(x.shape)}", cure))
        raise Faulty
    if prediction.kind not in KINDS:
        cure = f"Hand on the kind of what was combined, predictions['cond'].kind; kinds are {', '.join(KINDS)}."
        found(Finding("error", "kind", place, f"returns a prediction of the kind {prediction.kind!r}", cure))
        raise Faulty
    if value.dtype != given.value.dtype and not (wider and value.dtype == torch.float32):
        cure = "Compute in float32 where precision counts, and return .to(predictions['cond'].value.dtype)."
        found(Finding("error", "dtype", place, f"returns {value.dtype} for predictions of {given.value.dtype}", cure))
    if not torch.isfinite(value).all() and all(torch.isfinite(t).all() for t in (given.value, x)):
        rule = "half precision" if half else "finite"
        cure = "Look for divisions by a norm or a level that is 0, and compute in float32."
        found(Finding("error", rule, place, "returns NaN or infinity for finite predictions", cure))
        raise Faulty


def hook_checks(hook: Hook, found: Found, channels: int, *, half: bool) -> dict[str, Check | None]:
    """What looks at the points that a hook overrides."""
    overridden = [point for point in _POINTS if getattr(type(hook), point, None) is not getattr(Hook, point)]

    def changing(point: str) -> Check:
        def check(plug: Any, args: tuple[Any, ...], result: Any) -> None:
            where = args[0]
            if result is not None:
                found(returned(plug, point, assigns=True))
            x, like = where.x, getattr(where, "x_before", None)
            like = like if isinstance(like, Tensor) else None
            _check_latents(place_of(plug, point), x, like, found, half=half)

        return check

    def pre_model(plug: Any, args: tuple[Any, ...], result: Any) -> None:
        inputs, place = args[1], place_of(plug, "pre_model")
        if result is None:
            return
        fits = isinstance(result, Tensor) and result.ndim == inputs.ndim and result.dtype == inputs.dtype
        if not fits or result.shape[0] != inputs.shape[0] or result.shape[2:] != inputs.shape[2:]:
            what = _told(result)
            cure = f"Return inputs like those given, {_told(inputs)}, or None to leave them."
            found(Finding("error", "shape", place, f"returns {what}", cure))
            raise Faulty
        if result.shape[1] < channels:
            cure = f"The network takes {channels} channels: change values, and keep {list(inputs.shape)}."
            found(Finding("error", "shape", place, f"returns {_told(result)}", cure))
            raise Faulty

    def post_model(plug: Any, args: tuple[Any, ...], result: Any) -> None:
        given, place = args[1], place_of(plug, "post_model")
        if result is None:
            return
        if not isinstance(result, Mapping) or result.keys() != given.keys():
            what = ", ".join(map(str, result)) if isinstance(result, Mapping) else _a(type(result).__name__)
            cure = f"Return a Prediction for each of {', '.join(given)}, by name, or None to leave them."
            found(Finding("error", "returned type", place, f"returns {what}", cure))
            raise Faulty
        for name, prediction in result.items():
            if not isinstance(prediction, Prediction):
                cure = "Return {name: Prediction(value, kind)}."
                found(Finding("error", "returned type", place, f"returns {_a(type(prediction).__name__)}", cure))
                raise Faulty
            like = given[name]
            _check_prediction(place, prediction, like.value, like, found, half=half, wider=False)

    checks: dict[str, Check | None] = {point: changing(point) for point in ASSIGNING if point in overridden}
    return checks | {
        point: check for point, check in (("pre_model", pre_model), ("post_model", post_model)) if point in overridden
    }


_POINTS = (*ASSIGNING, "pre_model", "post_model")


def _check_latents(place: str, x: Any, like: Tensor | None, found: Found, *, half: bool) -> None:
    if not isinstance(x, Tensor) or (like is not None and (x.shape != like.shape or x.dtype != like.dtype)):
        wanted = "a tensor" if like is None else _told(like)
        cure = f"Latents keep shape and dtype: {wanted}."
        found(Finding("error", "latents", place, f"leaves {_told(x)}", cure))
        raise Faulty
    if not torch.isfinite(x).all():
        cure = "Look for divisions by a norm or a level that is 0, and compute in float32."
        found(Finding("error", "half precision" if half else "finite", place, "leaves NaN or infinity", cure))
        raise Faulty


def _told(value: Any) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else _a(type(value).__name__)


def _a(name: str) -> str:
    return "None" if name == "NoneType" else f"a {name}"
