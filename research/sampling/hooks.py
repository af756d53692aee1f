"""The named points of the loop that code from outside can reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from research.errors import UserError

if TYPE_CHECKING:
    from research.sampling.prediction import Prediction
    from research.sampling.run import Run, StepState

POINTS = ("on_start", "pre_step", "pre_model", "post_model", "post_guidance", "post_step", "on_end")


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

    def post_model(self, state: StepState, predictions: Mapping[str, Prediction]) -> dict[str, Prediction] | None:
        """The prediction of each branch by name: return a replacement for all of them or None."""

    def post_guidance(self, state: StepState) -> None:
        """After guidance: ``state.guided`` may be replaced."""

    def post_step(self, state: StepState) -> None:
        """After the scheduler's step: ``state.x`` is the next latents and may be replaced."""

    def on_end(self, run: Run) -> None:
        """After the last stage. ``run.x`` holds the final latents and may be replaced; ``run.trace`` goes to the result."""


class HookSet:
    """Hooks in their order. Only methods that a hook overrides are called, so idle hooks cost the loop nothing."""

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = sorted(hooks, key=lambda hook: hook.order)
        for point in POINTS:
            setattr(self, f"_{point}", self._overriding(point))

    def _overriding(self, point: str) -> list[Callable[..., Any]]:
        return [getattr(h, point) for h in self.hooks if getattr(type(h), point, None) is not getattr(Hook, point)]

    def has(self, point: str) -> bool:
        return bool(getattr(self, f"_{point}"))

    def call(self, point: str, where: Run | StepState) -> None:
        """Call a point whose hooks change the run or state they are given."""
        for method in getattr(self, f"_{point}"):
            self._guarded(point, method, where)

    def replace(self, point: str, state: StepState, value: Any) -> Any:
        """Call a point whose hooks may return a replacement of ``value``."""
        for method in getattr(self, f"_{point}"):
            returned = self._guarded(point, method, state, value)
            value = value if returned is None else returned
        return value

    @staticmethod
    def _guarded(point: str, method: Callable[..., Any], where: Run | StepState, *args: Any) -> Any:
        try:
            return method(where, *args)
        except UserError:
            raise
        except Exception as error:
            stage = getattr(where, "stage", None)
            at = "" if stage is None else f" at step {stage.step} (stage {stage.index})"
            hook = type(method.__self__).__name__  # type: ignore[attr-defined]
            # the user's own traceback stays: only a note says which plug, point and step it was
            error.add_note(f"raised in hook {hook}.{point}{at}") if hasattr(error, "add_note") else None
            raise
