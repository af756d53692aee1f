"""Branches of several models: each is evaluated by the denoiser of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from research.errors import SamplingError
from research.sampling.interfaces import Branch, Denoiser
from research.sampling.prediction import Prediction
from research.sampling.state import Run
from research.sampling.timeline import Stage


class ByModel:
    """The denoisers of a run by the names that branches call their models. Branches of one model are evaluated together."""

    def __init__(self, denoisers: Mapping[str, Denoiser]):
        self.denoisers = denoisers

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        for branch in branches:
            if branch.model != "main":
                break
        else:
            return self.denoisers["main"].predict(x, stage, branches)
        by_model: dict[str, list[Branch]] = {}
        for branch in branches:
            by_model.setdefault(branch.model, []).append(branch)
        if unknown := sorted(by_model.keys() - self.denoisers.keys()):
            raise SamplingError(
                f"guidance: a branch asks for the model '{unknown[0]}'; this run has {', '.join(self.denoisers)}."
            )
        found: dict[str, Prediction] = {}
        for name, mine in by_model.items():
            found |= self.denoisers[name].predict(x, stage, mine)
        return {branch.name: found[branch.name] for branch in branches}


def denoiser_of(run: Run) -> Denoiser:
    """What evaluates the branches of a run, once guidance has said which models it needs."""
    return ByModel({name: model.denoiser(run) for name, model in run.models.items()})
