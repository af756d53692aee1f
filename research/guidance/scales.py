"""Images of several guidance scales in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from research.checks import check_number
from research.errors import ConfigError
from research.guidance.modifier import Modifier
from research.sampling.interfaces import (
    Batch,
    Branch,
    Condition,
    Denoiser,
    Guidance,
    Guided,
    ModelFacts,
    Solver,
    StepState,
)
from research.sampling.memory import Remembering
from research.sampling.prediction import Kind, Prediction, convert
from research.sampling.timeline import Stage

_HALF = (torch.float16, torch.bfloat16)


class Scales(Modifier):
    """A scale an image: vectorised guidance. An image comes out as with the guidance at its own scale alone, to rounding. What
    images of one seed have in common before scales make a difference is computed once.

    The guidance inside must say that it can (`Guidance.vectorises`), at each of the scales. Images are counted in the order asked
    for: with ``sampler.batches(task, seeds=[0, 1], rows=[0, 1, 0, 1], ...)`` and four scales both seeds are made at two.

    Args:
        guidance: whose scale is set; put modifiers inside.
        scales: one an image of all that are asked for.

    Raises:
        ConfigError: a scale is none, or the guidance cannot take several at once; when it runs, there are more images than
            scales.
    """

    def __init__(self, guidance: Guidance, scales: Sequence[float]):
        super().__init__(guidance)
        self.scales = [check_number("guidance.scales", scale) for scale in scales]
        if not self.scales:
            raise ConfigError("guidance.scales: found an empty list; accepted is a scale an image.")
        for value in self.scales:
            if not self.guidance.with_scale(value).vectorises():
                raise ConfigError(
                    f"guidance.scales: {type(self.guidance).__name__} cannot take the scale {value:g} beside others."
                )
        # what is asked for is asked at one scale, that which is furthest from asking for less
        self._asked = max(self.scales, key=lambda scale: abs(scale - (self.neutral or 0.0)))

    @property
    def requires(self) -> frozenset[str]:
        return self.guidance.with_scale(self._asked).requires

    def check(self, model: ModelFacts, solver: Solver) -> None:
        self.guidance.with_scale(self._asked).check(model, solver)

    def start(self, run: Batch) -> None:
        with run.at_scale(self, self._asked):
            super().start(run)
        if run.places and run.places[-1] >= len(self.scales):
            raise ConfigError(f"guidance.scales: found {len(self.scales)} for at least {run.places[-1] + 1} images.")
        dtype = torch.promote_types(run.model.dtype, torch.float32)
        mine = [self.scales[place] for place in run.places]
        self._mine = torch.tensor(mine, dtype=dtype, device=run.model.device).reshape(-1, 1, 1, 1)

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        self._once = _Once(super().around_model(run, denoiser), run.rows)
        return self._once

    def differentiates(self, state: StepState) -> bool:
        with state.at_scale(self, self._asked):
            return super().differentiates(state)

    def branches(self, state: StepState) -> Sequence[Branch]:
        with state.at_scale(self, self._asked):
            return super().branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) > 1:
            self._once.alike = False  # from here on scales make a difference
        with state.at_scale(self, self._mine):
            half = next(iter(predictions.values())).value.dtype
            if half not in _HALF:
                return self.guidance.combine(state, predictions)
            # a scale is not rounded to half precision where it stands alone
            wide = {name: Prediction(p.value.float(), p.kind) for name, p in predictions.items()}
            guided = self.guidance.combine(state, wide)
            kind = next(iter(predictions.values())).kind
            renoise = guided.renoise and _narrow(state, guided.renoise, kind, half)
            return replace(guided, prediction=_narrow(state, guided.prediction, kind, half), renoise=renoise)


class _Once(Remembering):
    """A denoiser around another that evaluates an image's copies once, as long as they are alike.

    Copies of an image have its noise and its conditions: they part at the first stage at which guidance combines predictions.
    """

    keeps = ("alike",)

    def __init__(self, denoiser: Denoiser, rows: Sequence[int]):
        self.denoiser = denoiser
        different = list(dict.fromkeys(rows))
        self.alike = len(different) < len(rows)
        self._first = [rows.index(row) for row in different]
        self._copies = [different.index(row) for row in rows]
        self._conditions: dict[int, tuple[Condition, Condition]] = {}  # held, so that no other comes to have the id

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        if not self.alike:
            return self.denoiser.predict(x, stage, branches)
        found = self.denoiser.predict(x[self._first], stage, [self._of_few(branch) for branch in branches])
        return {name: Prediction(p.value[self._copies], p.kind) for name, p in found.items()}

    def _of_few(self, branch: Branch) -> Branch:
        condition = branch.condition
        if id(condition) not in self._conditions:
            self._conditions[id(condition)] = condition, condition.mapped(lambda rows: rows[self._first])
        time = branch.time
        if time is not None and time.ndim:
            time = time[self._first]
        return replace(branch, condition=self._conditions[id(condition)][1], time=time)


def _narrow(state: StepState, prediction: Prediction, kind: Kind, dtype: torch.dtype) -> Prediction:
    """A prediction as the model makes it: of its kind, and in its precision."""
    converted = convert(prediction, kind, state.x_before.float(), state.stage)
    return Prediction(converted.value.to(dtype), converted.kind)
