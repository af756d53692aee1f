"""The base class of guidance around another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from research.errors import ConfigError
from research.sampling.interfaces import Batch, Branch, Denoiser, Guidance, Guided, ModelFacts, Solver, StepState
from research.sampling.prediction import Prediction


class Wrapping(Guidance):
    """Does what the guidance inside does; subclasses change a part of it.

    Methods that add a term to another guidance's result take it as ``base``, modifiers as their first argument.

    Args:
        guidance: the one inside, by default none.

    Raises:
        ConfigError: it is no guidance.
    """

    own_requires: frozenset[str] = frozenset()  # besides what the guidance inside requires

    def __init__(self, guidance: Guidance | None = None):
        self.guidance = Guidance() if guidance is None else guidance
        if not isinstance(self.guidance, Guidance):
            raise ConfigError(
                f"guidance: {type(self).__name__} wraps {guidance!r}; accepted is a guidance such as CFG(5)."
            )

    @property
    def requires(self) -> frozenset[str]:
        return self.guidance.requires | self.own_requires

    def check(self, model: ModelFacts, solver: Solver) -> None:
        self.guidance.check(model, solver)

    def start(self, run: Batch) -> None:
        self.guidance.start(run)

    def forget(self) -> None:
        self.guidance.forget()

    def around_model(self, run: Batch, denoiser: Denoiser) -> Denoiser:
        return self.guidance.around_model(run, denoiser)

    def differentiates(self, state: StepState) -> bool:
        return self.guidance.differentiates(state)

    def stands_still(self, state: StepState) -> bool:
        return self.guidance.stands_still(state)

    def branches(self, state: StepState) -> Sequence[Branch]:
        return self.guidance.branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        return self.guidance.combine(state, predictions)


def with_branches(asked: Sequence[Branch], *more: Branch) -> list[Branch]:
    """Branches, and further ones unless one of the same name is among them."""
    names = {branch.name for branch in asked}
    return [*asked, *(branch for branch in more if branch.name not in names)]
