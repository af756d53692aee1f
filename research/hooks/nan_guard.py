"""A hook that stops a run at the first NaN or infinite latent."""

from __future__ import annotations

import torch

from research.errors import SamplingError
from research.sampling.interfaces import Hook, StepState


class NanGuard(Hook):
    """Ends the run at the stage where a prediction or the latents stop being finite.

    The loop itself looks at the latents every 16 stages and after the last, and names the first bad one. This looks at every
    stage, and says whose number it was, at the price of waiting for the GPU each time.

    Raises:
        SamplingError: names the stage, and whether it was the model, guidance or the scheduler.
    """

    order = 1000  # after whatever else changes the latents

    def vectorises(self) -> bool:
        return True

    def post_guidance(self, state: StepState) -> None:
        for name, prediction in state.predictions.items():
            self._check(prediction.value, state, f"the model's prediction for branch '{name}'")
        self._check(state.guided.prediction.value, state, "the guided prediction")

    def post_step(self, state: StepState) -> None:
        self._check(state.x, state, f"the latents after scheduler {state.run.solver.name}")

    @staticmethod
    def _check(values: torch.Tensor, state: StepState, what: str) -> None:
        if not torch.isfinite(values).all():
            stage = state.stage
            raise SamplingError(
                f"NanGuard: {what} are not finite (NaN or infinite) at stage {stage.index}, "
                f"step {stage.step + 1} of {stage.n_steps} (t = {stage.time:g})."
            )
