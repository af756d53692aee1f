"""The named points of the loop that code from outside can reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from research.errors import ConfigError, SamplingError, UserError

if TYPE_CHECKING:
    from research.sampling.interfaces import Model, Solver
    from research.sampling.prediction import Prediction
    from research.sampling.state import Run, StepState
    from research.sampling.timeline import Timeline


def not_inherited(cls: type, base: type, name: str) -> None:
    """Have a class that does not define a method itself take that of ``base``, whatever stands between them."""
    if name not in vars(cls):
        setattr(cls, name, getattr(base, name))


class Hook:
    """A plug with a method for each point of the loop. Override the ones you need; the others cost nothing.

    A hook object may serve several runs: set anything it keeps from a run in ``on_start``. Noise comes from
    ``state.run.noise.draw("hook/a name of your own", ...)``, which leaves the noise of everything else as it was.

    Attributes:
        order: sorts hooks (low first; equal ones stay as given).
        requires: what it needs of model and scheduler, checked against what they support before anything runs.
        claims: what it takes in hand alone ("composite", "timeline", ...); two hooks that claim the same are refused.
    """

    order: int = 0
    requires: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        not_inherited(cls, Hook, "vectorises")

    def vectorises(self) -> bool:
        """Whether images of several jobs may share a batch: what it does to an image depends on that image alone, and it keeps
        nothing for the trace. A subclass does not inherit it."""
        return False

    def check(self, model: Model, solver: Solver) -> None:
        """Raise a UserError for what cannot work with them. ``model`` may be an outline, made before weights load."""

    def timeline(self, solver: Solver, timeline: Timeline) -> Timeline | None:
        """Before the run: return another timeline (stages walked in another ``order``) or None."""

    def on_start(self, run: Run) -> None:
        """Before the first stage. ``run.x`` holds the start latents [N, C, h, w] and may be replaced."""

    def pre_step(self, state: StepState) -> None:
        """Before each model evaluation: replace ``state.x`` to transform the latents, or ``state.conditions``."""

    def pre_model(self, state: StepState, inputs: Tensor) -> Tensor | None:
        """What the model sees, [N, C, h, w], scaled by the scheduler: return a replacement (more channels, say) or None."""

    def post_model(self, state: StepState, predictions: Mapping[str, Prediction]) -> dict[str, Prediction] | None:
        """The prediction of each branch by name: return a replacement for all of them or None."""

    def post_guidance(self, state: StepState) -> None:
        """After guidance: ``state.guided`` may be replaced."""

    def post_step(self, state: StepState) -> None:
        """After the scheduler's step: ``state.x`` is the next latents and may be replaced."""

    def on_end(self, run: Run) -> None:
        """After the last stage. ``run.x`` holds the final latents and may be replaced; ``run.trace`` goes to the result."""

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Once all images are made: further pictures by name, a PIL image or a list of them for an animation."""
        return {}


def check_claims(hooks: Sequence[Hook], claimed: frozenset[str] = frozenset(), by: str = "the task") -> None:
    """Check that no two hooks take the same thing in hand.

    Args:
        claimed: what is taken already, ``by`` somebody.

    Raises:
        ConfigError: two do.
    """
    owners = dict.fromkeys(claimed, by)
    for hook in hooks:
        name = type(hook).__name__
        for claim in sorted(hook.claims):
            if claim in owners:
                raise ConfigError(
                    f"hooks: {name} conflicts with {owners[claim]}, both take the {claim} in hand; accepted is one of them."
                )
            owners[claim] = name


class HookSet:
    """Hooks in their order, with one callable a point. Only methods that a hook overrides are in it, so idle hooks cost the
    loop nothing.

    Raises:
        ConfigError: two hooks claim the same.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = sorted(hooks, key=lambda hook: hook.order)
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
                    check(said(point, method), where, before)

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
                    check(said(point, method), state, value, returned)
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


def guarded(point: str, method: Callable[..., Any], where: Run | StepState, *args: Any) -> Any:
    """Call a plug's method; whatever it raises says afterwards which plug, point and step it was. The user's traceback stays."""
    try:
        return method(where, *args)
    except UserError:
        raise
    except Exception as error:
        stage = getattr(where, "stage", None)
        at = "" if stage is None else f" at step {stage.step} (stage {stage.index})"
        error.add_note(f"raised in {said(point, method)}{at}")
        raise


def said(point: str, method: Callable[..., Any]) -> str:
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
