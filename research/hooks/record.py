"""Numbers of every stage, for curves over the noise level; whole tensors where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_whole_number
from research.errors import ConfigError, nearest
from research.hooks.windows import first_of_step
from research.sampling.interfaces import Hook, Run, StepState
from research.sampling.prediction import convert

KEY = "hooks.record"
TENSORS = ("x", "x0", "guided", "predictions")


class Record(Hook):
    """Records a few scalars a stage into ``result.trace["record"]``, and tensors into ``result.trace["tensors"]`` if asked to.

    Each entry of ``record`` has ``index``, ``step``, ``log_snr`` and, averaged over the batch's images:

    * ``latents_std`` and ``x0_std``: standard deviation over an image of the latents and of the clean estimate
    * ``guided_rms`` and ``rms/<branch>``: root mean square of the guided prediction and of each branch's
    * ``guidance_rms``: that of the guided less the conditional prediction, in the kind that the model predicts
    * ``cosine``: between the conditional and the unconditional prediction, where both were made
    * ``effective_scale``: there, the scale of CFG that comes nearest to the guided prediction g: with d = cond - uncond,
      ``<g - uncond, d> / |d|^2``, and ``beside_cfg``, the share of g - uncond that no scale gives, ``|g - uncond - scale d| /
      |g - uncond|`` from 0 (CFG) to 1. The calibration that arXiv:2602.22570 calls for: effects parallel to that of CFG, and
      orthogonal to it. 1 and 0 where d is zero
    * ``cosine/<branch>``: between the guided prediction and that of a branch, where there are two branches and more

    ``per_image`` holds the same names with a list of one number an image, six digits each.

    Args:
        every: record each ``every``-th of the user's steps, and the last.
        steps: record these steps instead, counted from 0.
        tensors: whole tensors to keep at those steps: names of "x" (the latents that the model saw), "x0" (the clean estimate),
            "guided" (the guided prediction), "predictions" (each branch's). In Python they are
            ``result.trace["tensors"]["x0/step_0012"]``, [N, C, h, w] on the CPU, of the latents' dtype;
            ``research`` writes them as safetensors into the job's folder and names the files in trace.json. The second evaluation
            of a second-order step is ``x0/step_0012_b``; a step on an inversion's way to the noise is ``x0/back_step_0012``.

    Raises:
        ConfigError: no such tensor, a step that the job does not have, or both ``every`` and ``steps``.
    """

    order = 900

    keeps = ("_kept", "_tensors")

    def __init__(self, every: int = 1, steps: Sequence[int] | None = None, tensors: Sequence[str] | str = ()):
        self.every = check_whole_number(f"{KEY}.every", every, least=1)
        if steps is not None and self.every != 1:
            raise ConfigError(f"{KEY}.steps: found both every={every} and steps; accepted is one of them.")
        self.steps = None if steps is None else self._listed(steps)
        self.tensors = [tensors] if isinstance(tensors, str) else list(tensors)
        for name in self.tensors:
            if name not in TENSORS:
                raise ConfigError(
                    f"{KEY}.tensors: found {name!r}.{nearest(name, TENSORS)} Accepted: {', '.join(TENSORS)}."
                )

    @staticmethod
    def _listed(steps: Any) -> list[int]:
        if not isinstance(steps, list | tuple | range):
            raise ConfigError(f"{KEY}.steps: found {steps!r}; accepted is a list of steps, counted from 0.")
        return [check_whole_number(f"{KEY}.steps", step, least=0) for step in steps]

    def on_start(self, run: Run) -> None:
        self._kept: list[tuple[dict[str, float], dict[str, Tensor]]] = []
        self._tensors: dict[str, Tensor] = {}
        n_steps = run.timeline.n_steps
        if self.steps is None:
            return
        if beyond := [step for step in self.steps if step >= n_steps]:
            raise ConfigError(f"{KEY}.steps: found {beyond[0]}; accepted are 0 to {n_steps - 1} in this job.")
        taken = {stage.step for stage in run.timeline}
        if left_out := [step for step in self.steps if step not in taken]:
            run.warn(f"{KEY}.steps: this run does not take the steps {left_out}; it starts at {min(taken)}.")

    def post_guidance(self, state: StepState) -> None:
        stage = state.stage
        if self.steps is None:
            if stage.step % self.every and stage.step != stage.n_steps - 1:
                return
        elif stage.step not in self.steps:
            return
        where = {"index": stage.index, "step": stage.step, "log_snr": stage.log_snr}
        self._kept.append((where, dict(_numbers(state))))
        way = "back_" if state.run.going_back(stage) else ""
        second = "" if first_of_step(state.run, stage) else "_b"
        for name, tensor in self._wanted(state):
            self._tensors[f"{name}/{way}step_{stage.step:04d}{second}"] = tensor.detach().to("cpu", copy=True)

    def _wanted(self, state: StepState) -> Iterator[tuple[str, Tensor]]:
        for name in self.tensors:
            if name == "predictions":
                yield from ((f"predictions/{k}", p.value) for k, p in state.predictions.items())
            else:
                yield name, state.guided.prediction.value if name == "guided" else getattr(state, name)

    def on_end(self, run: Run) -> None:
        # read from the device once, after the last stage
        run.trace["record"] = [_entry(where, numbers) for where, numbers in self._kept]
        if self._tensors:
            run.trace["tensors"] = self._tensors


def _numbers(state: StepState) -> Iterator[tuple[str, Tensor]]:
    """Each with one number an image, [N]."""
    predictions = state.predictions
    yield "latents_std", _flat(state.x).std(dim=1)
    yield "x0_std", _flat(state.x0).std(dim=1)
    yield "guided_rms", _rms(state.guided.prediction.value)
    for name, prediction in predictions.items():
        yield f"rms/{name}", _rms(prediction.value)
    if "cond" in predictions and "uncond" in predictions:
        yield "cosine", _cosine(predictions["cond"].value, predictions["uncond"].value)
        yield from _against_cfg(state)
    if len(predictions) < 2:
        return
    first = predictions.get("cond") or next(iter(predictions.values()))
    guided = convert(state.guided.prediction, first.kind, state.x_before, state.stage).value
    yield "guidance_rms", _rms(guided - first.value)
    for name, prediction in predictions.items():
        same_kind = convert(prediction, first.kind, state.x_before, state.stage)
        yield f"cosine/{name}", _cosine(guided, same_kind.value)


def _against_cfg(state: StepState) -> Iterator[tuple[str, Tensor]]:
    cond = state.predictions["cond"]
    # differences of one kind are multiples of those of another: the scale is the same in each
    uncond, guided = (
        _flat(convert(one, cond.kind, state.x_before, state.stage).value)
        for one in (state.predictions["uncond"], state.guided.prediction)
    )
    direction, moved = _flat(cond.value) - uncond, guided - uncond
    along, length = (moved * direction).sum(1), direction.square().sum(1)
    scale = torch.where(length > 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 1.0)
    beside, whole = (moved - scale[:, None] * direction).norm(dim=1), moved.norm(dim=1)
    yield "effective_scale", scale
    yield "beside_cfg", torch.where(length > 0, beside / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)


def _entry(where: dict[str, float], numbers: dict[str, Tensor]) -> dict[str, Any]:
    means = {name: float(values.mean()) for name, values in numbers.items()}
    per_image = {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in numbers.items()}
    return {**where, **means, "per_image": per_image}


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).float()


def _rms(x: Tensor) -> Tensor:
    return _flat(x).square().mean(dim=1).sqrt()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(_flat(a), _flat(b), dim=1)
