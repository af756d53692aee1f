"""Numbers of every stage, for curves over the noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from research.sampling.hooks import Hook
from research.sampling.run import Run, StepState


class Record(Hook):
    """Records a few scalars a stage, averaged over the batch's images, into ``result.trace["record"]``.

    Each entry has ``index``, ``step``, ``log_snr`` and: ``latents_std`` and ``x0_std`` (standard deviation over an
    image), ``guided_rms`` (root mean square of the guided prediction), ``rms/<branch>`` of each branch, and ``cosine``
    between the conditional and the unconditional prediction where both were made.

    Args:
        every: record each ``every``-th of the user's steps, and the last.
    """

    order = 900

    def __init__(self, every: int = 1):
        self.every = every

    def on_start(self, run: Run) -> None:
        self._kept: list[tuple[dict[str, float], dict[str, Tensor]]] = []

    def post_guidance(self, state: StepState) -> None:
        stage = state.stage
        if stage.step % self.every and stage.step != stage.n_steps - 1:
            return
        numbers = {
            "latents_std": _std(state.x),
            "x0_std": _std(state.x0),
            "guided_rms": _rms(state.guided.prediction.value),
        }
        numbers |= {f"rms/{name}": _rms(p.value) for name, p in state.predictions.items()}
        if {"cond", "uncond"} <= state.predictions.keys():
            cond, uncond = (state.predictions[name].value.flatten(1).float() for name in ("cond", "uncond"))
            numbers["cosine"] = torch.cosine_similarity(cond, uncond, dim=1).mean()
        self._kept.append(({"index": stage.index, "step": stage.step, "log_snr": stage.log_snr}, numbers))

    def on_end(self, run: Run) -> None:
        # read from the device once, after the last stage
        run.trace["record"] = [
            {**where, **{name: float(value) for name, value in numbers.items()}}
            for where, numbers in self._kept
        ]


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).float().std(dim=1).mean()


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).float().square().mean(dim=1).sqrt().mean()
