"""Hooks called at their points of the loop, and checks of what plugs hand back there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from research.errors import SamplingError, UserError
from research.sampling.fit import check_claims
from research.sampling.interfaces import Batch, Hook, Run, StepState
from research.sampling.prediction import Prediction


class HookSet:
    """Hooks in their order, with one callable a point. Only methods that a hook overrides are in it, so idle hooks cost the
    loop nothing.

    Raises:
        ConfigError: two hooks claim the same.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = in_order(hooks)
        check_claims(self.hooks)
        self.on_start, self.on_end = self._changing("on_start"), self._changing("on_end")
        self.pre_step = self._changing("pre_step", _check_latents)
        self.post_step = self._changing("post_step", _check_latents)
        self.post_guidance = self._changing("post_guidance", check_guided)
        self.pre_model = self._replacing("pre_model", _check_inputs)
        self.post_model = self._replacing("post_model", _check_predictions)

    def _changing(self, point: str, check: Callable[[str, Any, Tensor], None] | None = None) -> Callable[[Any], None]:
        """A point whose hooks change the run or state they are given."""
        methods = self._overriding(point)

        def call(where: Run | StepState) -> None:
            for method in methods:
                before = where.x
                guarded(point, method, where)
                if check is not None:
                    check(plug_name(point, method), where, before)

        return call if methods else _nothing

    def _replacing(
        self, point: str, check: Callable[[str, StepState, Any, Any], None]
    ) -> Callable[[StepState, Any], Any]:
        """A point whose hooks may return a replacement of what they are given."""
        methods = self._overriding(point)

        def call(state: StepState, value: Any) -> Any:
            for method in methods:
                returned = guarded(point, method, state, value)
                if returned is not None:
                    check(plug_name(point, method), state, value, returned)
                    value = returned
            return value

        return call if methods else _unchanged

    def _overriding(self, point: str) -> list[Callable[..., Any]]:
        methods = [getattr(hook, point) for hook in self.hooks]
        return [m for m in methods if getattr(m, "__func__", m) is not getattr(Hook, point)]


def _nothing(where: Any) -> None:
    return None


def _unchanged(state: Any, value: Any) -> Any:
    return value


def in_order(hooks: Sequence[Hook]) -> list[Hook]:
    """Hooks by their ``order``; equal ones stay as given."""
    return sorted(hooks, key=lambda hook: hook.order)


def guarded(point: str, method: Callable[..., Any], where: Batch | StepState, *args: Any) -> Any:
    """Call a plug's method; whatever it raises says afterwards which plug, point and step it was. The user's traceback stays."""
    try:
        return method(where, *args)
    except UserError:
        raise
    except Exception as error:
        stage = where.stage if isinstance(where, StepState) else None
        at = "" if stage is None else f" at step {stage.step} (stage {stage.index})"
        error.add_note(f"raised in {plug_name(point, method)}{at}")
        raise


def plug_name(point: str, method: Callable[..., Any]) -> str:
    owner = getattr(method, "__self__", method)
    return f"{'hook' if isinstance(owner, Hook) else 'guidance'} {type(owner).__name__}.{point}"


# --- what plugs hand back


def _misfit(who: str, state: StepState, found: Any, wanted: Tensor) -> SamplingError:
    told = f"{list(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    return SamplingError(
        f"{who}: left {told} at step {state.stage.step}; accepted are latents of {list(wanted.shape)} {wanted.dtype}."
    )


def _check_latents(who: str, state: StepState, like: Tensor) -> None:
    x = state.x
    if not isinstance(x, Tensor) or x.shape != like.shape or x.dtype != like.dtype:
        raise _misfit(who, state, x, like)


def _check_inputs(who: str, state: StepState, given: Tensor, returned: Any) -> None:
    fits = isinstance(returned, Tensor) and returned.dtype == given.dtype and returned.ndim == given.ndim
    if not fits or (returned.shape[0], *returned.shape[2:]) != (given.shape[0], *given.shape[2:]):
        raise _misfit(who, state, returned, given)


def _check_predictions(who: str, state: StepState, given: Mapping[str, Any], returned: Any) -> None:
    if not isinstance(returned, Mapping) or returned.keys() != given.keys():
        found = ", ".join(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
        raise SamplingError(
            f"{who}: returned {found} at step {state.stage.step}; accepted is a prediction for each of {', '.join(given)}."
        )
    for name, prediction in returned.items():
        _check_prediction(who, state, prediction, given[name])


def _check_prediction(who: str, state: StepState, found: Any, like: Prediction) -> None:
    value = getattr(found, "value", found)
    if not isinstance(found, type(like)) or value.shape != like.value.shape or value.dtype != like.value.dtype:
        raise _misfit(who, state, value, like.value)


def check_guided(who: str, state: StepState, like: Tensor) -> None:
    """A guided prediction may be of another kind than the model's, and in half precision of a wider dtype."""
    value = getattr(getattr(state.guided, "prediction", None), "value", state.guided)
    if not isinstance(value, Tensor) or value.shape != like.shape:
        raise _misfit(who, state, value, like)
