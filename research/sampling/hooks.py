"""The named points of the loop that code from outside can reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from research.errors import UserError

if TYPE_CHECKING:
    from research.sampling.prediction import Prediction
    from research.sampling.run import Run, StepState


class Hook:
    """A plug with a method for each point of the loop. Override the ones you need; the others cost nothing.

    ``order`` sorts hooks (low first; equal ones stay as given). A hook object may serve several runs: set anything it keeps
    from a run in ``on_start``. Noise comes from ``state.run.noise.draw("a name of your own", ...)``, which leaves the
    noise of everything else as it was.
    """

    order: int = 0

    def on_start(self, run: Run) -> None:
        """Before the first stage. ``run.x`` holds the start latents [N, C, h, w] and may be replaced."""

    def pre_step(self, state: StepState) -> None:
        """Before each model evaluation: replace ``state.x`` to transform the latents themselves."""

    def pre_model(self, state: StepState, inputs: Tensor) -> Tensor | None:
        """What the model sees, [N, C, h, w], scaled by the scheduler: return a replacement (more channels, say) or None."""

    def post_model(
        self, state: StepState, predictions: Mapping[str, Prediction]
    ) -> dict[str, Prediction] | None:
        """The prediction of each branch by name: return a replacement for all of them or None."""

    def post_guidance(self, state: StepState) -> None:
        """After guidance: ``state.guided`` may be replaced."""

    def post_step(self, state: StepState) -> None:
        """After the scheduler's step: ``state.x`` is the next latents and may be replaced."""

    def on_end(self, run: Run) -> None:
        """After the last stage. ``run.x`` holds the final latents and may be replaced; ``run.trace`` goes to the result."""


class HookSet:
    """Hooks in their order, with one callable a point. Only methods that a hook overrides are in it, so idle hooks cost the
    loop nothing.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = sorted(hooks, key=lambda hook: hook.order)
        self.on_start, self.on_end = self._changing("on_start"), self._changing("on_end")
        self.pre_step, self.post_step = self._changing("pre_step"), self._changing("post_step")
        self.post_guidance = self._changing("post_guidance")
        self.pre_model, self.post_model = self._replacing("pre_model"), self._replacing("post_model")

    def _changing(self, point: str) -> Callable[[Any], None]:
        """A point whose hooks change the run or state they are given."""
        methods = self._overriding(point)

        def call(where: Run | StepState) -> None:
            for method in methods:
                _guarded(point, method, where)

        return call if methods else _nothing

    def _replacing(self, point: str) -> Callable[[StepState, Any], Any]:
        """A point whose hooks may return a replacement of what they are given."""
        methods = self._overriding(point)

        def call(state: StepState, value: Any) -> Any:
            for method in methods:
                returned = _guarded(point, method, state, value)
                value = value if returned is None else returned
            return value

        return call if methods else _unchanged

    def _overriding(self, point: str) -> list[Callable[..., Any]]:
        methods = [getattr(hook, point) for hook in self.hooks]
        return [m for m in methods if getattr(m, "__func__", m) is not getattr(Hook, point)]


def _nothing(where: Any) -> None:
    return None


def _unchanged(state: Any, value: Any) -> Any:
    return value


def _guarded(point: str, method: Callable[..., Any], where: Run | StepState, *args: Any) -> Any:
    try:
        return method(where, *args)
    except UserError:
        raise
    except Exception as error:
        # the user's own traceback stays: only a note says which plug, point and step it was
        stage = getattr(where, "stage", None)
        at = "" if stage is None else f" at step {stage.step} (stage {stage.index})"
        name = type(getattr(method, "__self__", method)).__name__
        error.add_note(f"raised in hook {name}.{point}{at}")
        raise
